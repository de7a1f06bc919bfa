import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from sklearn.metrics import confusion_matrix
from tiny import SPEC, VIEW, ArraySource, coloured, mean_colour, on_mesh

from conic_jax import optim
from conic_jax.command_line import load
from conic_jax.data import augment
from conic_jax.errors import UserError
from conic_jax.evals import linear
from conic_jax.evals.features import FrozenEncoder, extract, to_host
from conic_jax.evals.linear import LinearSettings, linear_accuracy
from conic_jax.hardware.mesh import make_mesh, replicated, to_global

TRAIN_LABELS, TEST_LABELS = np.arange(96) % 4, np.arange(30) % 4
FEW = {'epochs': 3, 'batch_size': 16}


def settings_of(**changes):
  return LinearSettings(**{**load('configs/conic.py').linear, **changes})


def measure(mesh, *, train=TRAIN_LABELS, test=TEST_LABELS, shown=(None, None), scale=1.,
            report=None, **settings):
  """Linear accuracy on coloured images; `shown` has the classes of the images where labels lie."""
  sources = [ArraySource(coloured(labels if classes is None else classes, seed), labels, 4)
             for seed, (labels, classes) in enumerate(zip((train, test), shown))]
  encoder = FrozenEncoder(mean_colour, {'scale': jnp.float32(scale)})
  return linear_accuracy(encoder, *sources, view=VIEW, settings=settings_of(**FEW | settings), seed=0,
                         mesh=mesh, report=report)


@functools.cache
def separable(mesh):
  """The result of features of which each class has its own."""
  return measure(mesh, learning_rates=(0.5,))


@pytest.mark.slow
def test_separable_features_reach_everything(mesh):
  result = separable(mesh)
  assert (result.top1, result.top5, result.learning_rate) == (1., 1., 0.5)
  assert result.by_learning_rate == {0.5: 1.}
  assert result.held_out == {}


@pytest.mark.slow
@pytest.mark.parametrize(('most', 'is_counted'), [(4, True), (3, False)])
def test_which_class_is_taken_for_which_is_counted_of_so_many(mesh8, monkeypatch, most, is_counted):
  monkeypatch.setattr(linear, '_CONFUSED_CLASSES', most)
  assert (measure(mesh8, learning_rates=(0.5,)).confusion is not None) == is_counted


@pytest.mark.slow
def test_a_rate_that_diverges_spoils_nothing(mesh):
  alone = measure(mesh, learning_rates=(0.5, 0.02))
  beside = measure(mesh, learning_rates=(3e38, 0.5, 0.02))
  assert beside.by_learning_rate.pop(3e38) == beside.held_out.pop(3e38) == 0.
  assert (beside.learning_rate, beside.top1) == (0.5, 1.)
  assert (beside.by_learning_rate, beside.held_out) == (alone.by_learning_rate, alone.held_out)


@pytest.mark.slow
def test_where_all_rates_diverge_the_accuracy_is_nothing(mesh8):
  result = measure(mesh8, learning_rates=(3e38,))
  assert (result.top1, result.top5) == (0., 0.)


@pytest.mark.slow
def test_the_test_images_never_choose(mesh8):
  # A negative rate learns the opposite, which is right on a test set with its two classes swapped.
  train, test = TRAIN_LABELS % 2, TEST_LABELS % 2
  result = measure(mesh8, train=train, test=1 - test, shown=(None, test),
                   learning_rates=(-0.1, 0.1))
  assert result.by_learning_rate == {-0.1: 1., 0.1: 0.}
  assert (result.learning_rate, result.top1) == (0.1, 0.)


@pytest.mark.slow
def test_the_held_out_tenth_chooses_and_is_not_trained_on(mesh8):
  # It has its classes swapped: the rate that learns the opposite of the other images is chosen.
  classes = TRAIN_LABELS % 2
  train = np.where(linear._is_held_out(96), 1 - classes, classes)
  result = measure(mesh8, train=train, test=TEST_LABELS % 2, shown=(classes, None),
                   learning_rates=(0.1, -0.1))
  assert result.held_out == {0.1: 0., -0.1: 1.}
  assert (result.learning_rate, result.top1) == (-0.1, 0.)


@pytest.mark.parametrize('num_images', [100, 1000, 50_000])
def test_a_tenth_of_every_run_of_ids_is_held_out(num_images):
  held_out = linear._is_held_out(num_images)
  assert held_out.mean() == pytest.approx(0.1, abs=0.011)
  runs = held_out.reshape(-1, 100).sum(1)
  assert 8 <= runs.min() <= runs.max() <= 12


@pytest.mark.parametrize('period', [2, 7, 10, 64, 100])
def test_a_tenth_of_every_class_is_held_out_where_classes_take_turns(period):
  held_out = linear._is_held_out(50_000)
  shares = [held_out[first::period].mean() for first in range(period)]
  assert 0.08 < min(shares) <= max(shares) < 0.12


@pytest.mark.slow
def test_one_device_and_eight_agree(mesh8):
  mesh1 = make_mesh(devices=jax.devices()[:1])
  results = [measure(mesh, learning_rates=(0.003, 0.01)) for mesh in (mesh1, mesh8)]
  assert results[0].by_learning_rate == pytest.approx(results[1].by_learning_rate)
  assert results[0].feature_norm == pytest.approx(results[1].feature_norm, rel=1e-5)
  assert results[0].learning_rate == results[1].learning_rate


@pytest.mark.slow
def test_a_batch_beyond_the_data_set_is_cut(mesh8):
  assert measure(mesh8, learning_rates=(0.5,), batch_size=4096, epochs=20).top1 == 1.


@pytest.mark.slow
@pytest.mark.parametrize('normalise', ['l2', 'standardise'])
def test_normalisation_takes_the_scale_away(mesh8, normalise):
  results = [measure(mesh8, learning_rates=(0.5,), normalise=normalise, scale=scale)
             for scale in (1., 1000.)]
  assert results[0].top1 == results[1].top1 == 1.
  assert results[1].feature_norm == pytest.approx(1000 * results[0].feature_norm, rel=1e-4)


@pytest.mark.slow
def test_feature_norm_is_that_of_the_test_images(mesh8):
  source = ArraySource(coloured(TEST_LABELS, 1), TEST_LABELS)
  features, _, _ = to_host(extract(mean_colour, {}, source, batch_size=16, mesh=mesh8, view=VIEW))
  expected = np.linalg.norm(features, axis=1).mean()
  assert separable(mesh8).feature_norm == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_reports_each_epoch(mesh8):
  reports = []
  measure(mesh8, learning_rates=(0.5, 0.02), report=reports.append)
  assert [row['epoch'] for row in reports] == [1, 2, 3]
  assert set(reports[0]) == {'epoch', 'step', 'loss_0.5', 'loss_0.02'}
  assert reports[-1]['loss_0.5'] < reports[0]['loss_0.5'] < np.log(4)


def cross_entropy_gradient(layer, features, targets):
  """The gradient of the mean cross entropy of a softmax layer, in float64, rounded."""
  kernel, bias = np.float64(layer['kernel']), np.float64(layer['bias'])
  wrong = scipy.special.softmax(features @ kernel + bias, axis=1) - targets
  return {'kernel': np.float32(features.T @ wrong / len(features)), 'bias': np.float32(wrong.mean(axis=0))}


@pytest.mark.slow
def test_steps_are_those_of_sgd_with_momentum_and_cosine(mesh):
  rng, steps, settings = np.random.default_rng(0), 5, settings_of(learning_rates=(0.3, 2.), epochs=1)
  view = dataclasses.replace(SPEC, count=1, jitter=0., grayscale=0., blur=0.)
  heads, optimizers = linear._init(2, 3, 4), []
  trace = linear._optimizer(settings).init((heads.kernel, heads.bias))
  state = jax.device_put(linear._State(jnp.int32(0), heads, trace), replicated(mesh))
  layers = [{'kernel': jnp.zeros((3, 4)), 'bias': jnp.zeros(4)} for _ in settings.learning_rates]
  for rate in settings.learning_rates:
    optimizers.append(optax.sgd(optax.cosine_decay_schedule(rate, steps), momentum=0.9))
  states = [optimizer.init(layer) for optimizer, layer in zip(optimizers, layers)]
  updates_of = [jax.jit(optimizer.update) for optimizer in optimizers]
  for step in range(steps):
    labels = rng.integers(0, 4, 16).astype(np.int32)
    labels[3], images = -1, coloured(labels, step)
    valid = rng.random(16) < 0.8
    batch = {'views': (images[:, None],), 'flip': np.zeros((16, 1), bool), 'valid': valid,
             'id': np.arange(16, dtype=np.int32), 'label': labels}
    state, *_ = linear._step(state, {}, to_global(batch, mesh), seed=0, encode=mean_colour, view=view,
                             settings=settings, steps_per_epoch=steps)
    used = valid & (labels >= 0)
    features = np.float64(mean_colour({}, augment.normalise(images, SPEC)))[used]
    targets = np.eye(4)[labels[used]]
    for index, layer in enumerate(layers):
      with jax.numpy_dtype_promotion('standard'):  # Optax's schedules promote the step.
        updates, states[index] = updates_of[index](cross_entropy_gradient(layer, features, targets),
                                                   states[index])
      layers[index] = optax.apply_updates(layer, updates)
  for index, layer in enumerate(layers):
    np.testing.assert_allclose(state.heads.kernel[index], layer['kernel'], atol=2e-5)
    np.testing.assert_allclose(state.heads.bias[index], layer['bias'], atol=2e-5)
  assert np.abs(layers[0]['kernel'] - layers[1]['kernel']).max() > 0.1


@pytest.mark.slow
def test_a_sweep_trains_each_rate_as_if_alone(mesh8):
  source = ArraySource(coloured(TRAIN_LABELS), TRAIN_LABELS, 4)
  encoder = FrozenEncoder(mean_colour, {'scale': np.float32(1)})
  view = dataclasses.replace(SPEC, count=1, jitter=0., grayscale=0., blur=0.)
  def kernels(*rates):
    settings = settings_of(learning_rates=rates, epochs=1, batch_size=16, normalise='standardise')
    return np.asarray(linear._train(encoder, source, view, settings, 0, mesh8, None).kernel)
  sweep = kernels(0.1, 3.)
  for index, rate in enumerate((0.1, 3.)):
    np.testing.assert_allclose(kernels(rate)[0], sweep[index], atol=1e-6)


def test_statistics_are_those_of_all_batches():
  rng = np.random.default_rng(0)
  features = rng.normal(3., 0.5, (40, 10, 2)).astype(np.float32)
  heads = linear._init(1, 2, 4)
  for step, batch in enumerate(features):
    heads = linear._update_statistics(heads, batch, np.ones(10, bool), step)
  np.testing.assert_allclose(heads.mean, features.mean((0, 1)), rtol=1e-5)
  np.testing.assert_allclose(heads.variance, features.var((0, 1)), rtol=0.1)


def test_hits_are_counted_by_rank(mesh):
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(50, 9)).astype(np.float32), rng.integers(-1, 9, 50)
  kernel = jnp.stack([jnp.eye(9), jnp.zeros((9, 9)), jnp.full((9, 9), jnp.nan)])
  heads = linear._Heads(kernel, jnp.zeros((3, 9)), jnp.zeros(9), jnp.ones(9))
  test = on_mesh(mesh, logits, labels)
  hits, total = linear._count_hits(heads, test, normalise='none')
  confusion = linear._confusion(heads, 0, test, normalise='none')
  logits, labels = logits[labels >= 0], labels[labels >= 0]
  ranks = np.argsort(np.argsort(-logits, axis=1), axis=1)[np.arange(len(labels)), labels]
  assert int(total) == len(labels) < 50
  # A head that tells nothing apart hits nothing, like one that is not finite.
  np.testing.assert_array_equal(hits, [[(ranks < 1).sum(), (ranks < 5).sum()], [0, 0], [0, 0]])
  np.testing.assert_array_equal(confusion, confusion_matrix(labels, logits.argmax(1), labels=range(9)))


@pytest.mark.parametrize('normalise', ['none', 'standardise'])
def test_the_scale_of_the_features(mesh, normalise):
  rng = np.random.default_rng(0)
  features = (rng.normal(size=(60, 5)) * [1, 2, 3, 4, 5] + 2).astype(np.float32)
  mean, variance = rng.normal(size=5), rng.uniform(1, 2, 5)
  heads = linear._Heads(jnp.zeros((1, 5, 2)), jnp.zeros((1, 2)), jnp.float32(mean), jnp.float32(variance))
  norm, std, square = linear._scale(heads, on_mesh(mesh, features, np.zeros(60)), normalise=normalise)
  assert float(norm) == pytest.approx(np.linalg.norm(features, axis=1).mean(), rel=1e-5)
  assert float(std) == pytest.approx(features.std(0).mean(), rel=1e-5)
  if normalise == 'standardise':
    features = (features - mean) / np.sqrt(variance + 1e-5)
  assert float(square) == pytest.approx((features**2).sum(1).mean() + 1, rel=1e-5)


@pytest.mark.slow
def test_up_to_the_stable_rate_nothing_diverges(mesh8):
  """Labels of two classes by chance: only the curvature can lift the loss above where it starts."""
  labels, losses = np.random.default_rng(0).integers(0, 2, 96), []
  common = {'train': labels, 'test': labels[:30], 'shown': (TRAIN_LABELS, TEST_LABELS), 'scale': 30.}
  stable = measure(mesh8, learning_rates=(0.5,), **common).stable_rate
  rates = (0.9 * stable, 30 * stable)
  measure(mesh8, learning_rates=rates, report=losses.append, epochs=20, batch_size=80, **common)
  below, above = (max(row[f'loss_{rate:g}'] for row in losses) for rate in rates)
  assert below < 1.01 * np.log(4)
  assert above > 2 * np.log(4)


@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_the_stable_rate_is_that_of_the_largest_curvature(mesh8, momentum):
  """2 (1 + m)/L of the heavy ball, where the curvature L of a softmax is at most ½ E[‖x‖² + 1]."""
  result = measure(mesh8, learning_rates=(0.5,), momentum=momentum, scale=3.0)
  images = ArraySource(coloured(TEST_LABELS, 1), TEST_LABELS, 4)
  features, *_ = to_host(extract(mean_colour, {'scale': jnp.float32(3)}, images, batch_size=16, mesh=mesh8,
                                 view=VIEW))
  curvature = 0.5 * ((np.asarray(features, np.float64) ** 2).sum(axis=1).mean() + 1)
  assert result.stable_rate == pytest.approx(2 * (1 + momentum) / curvature, rel=1e-4)


def test_steps_fall_at_their_shares():
  relative = optim.relative_schedule('steps', (0.6, 0.8), 50)
  rates = [float(relative(step)) for step in (0, 29, 30, 39, 40, 49)]
  assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(('settings', 'message'), [
    ({'normalise': 'bn'}, "is 'bn'; available: none, l2, standardise"),
    ({'learning_rates': ()}, 'learning_rates is empty'),
    ({'schedule': 'poly'}, "is 'poly'; available: cosine, steps"),
    ({'milestones': (60, 80)}, 'share of the training between 0 and 1'),
])
def test_wrong_settings_are_told(mesh8, settings, message):
  with pytest.raises(UserError, match=message):
    measure(mesh8, **settings)


def test_missing_labels_and_too_few_images_are_told(mesh8):
  unlabelled = ArraySource(coloured([0, 1]), [-1, -1])
  labelled, encoder = ArraySource(coloured([0, 1]), [0, 1]), FrozenEncoder(mean_colour, {})
  options = {'settings': settings_of(learning_rates=(0.1,), epochs=1), 'seed': 0, 'mesh': mesh8,
             'view': VIEW}
  with pytest.raises(UserError, match='training images have no labels'):
    linear_accuracy(encoder, unlabelled, labelled, **options)
  with pytest.raises(UserError, match='test images have no labels'):
    linear_accuracy(encoder, labelled, unlabelled, **options)
  with pytest.raises(UserError, match=r'2 images are too few .* 8 devices'):
    linear_accuracy(encoder, labelled, labelled, **options)


def test_a_large_seed_is_a_seed(mesh8):
  source = ArraySource(coloured(TRAIN_LABELS), TRAIN_LABELS)
  result = linear_accuracy(FrozenEncoder(mean_colour, {}), source, source, seed=2**32 - 1, mesh=mesh8,
                           settings=settings_of(learning_rates=(0.5,), **FEW), view=VIEW)
  assert result.top1 == 1.
