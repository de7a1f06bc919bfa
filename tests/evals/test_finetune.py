"""Fine-tuning: its steps by hand, what it learns, and that it leaves the encoder alone."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import SPEC, VIEW, ArraySource, coloured

from conic_jax.command_line import load
from conic_jax.data import augment
from conic_jax.errors import UserError
from conic_jax.evals import encoders, finetune
from conic_jax.evals.encoders import Encoder
from conic_jax.evals.features import to_host
from conic_jax.evals.finetune import FinetuneSettings
from conic_jax.hardware.mesh import make_mesh
from conic_jax.models import ResNet, VisionTransformer
from conic_jax.run.state import supervised_state

pytestmark = pytest.mark.slow

NETWORK = ResNet((1,), bottleneck=False, width=0.125, stem='cifar')
LABELS = np.arange(40) % 4


@pytest.fixture(scope='module')
def variables():
  return encoders.random_variables(NETWORK, 0)


def encoder_of(variables):
  def encode(variables, images):
    return NETWORK.apply(variables, images, mode='frozen')
  return Encoder('test', NETWORK, variables, SPEC, encode, None)


def config_of(**finetune):
  config = load('configs/finetune.py:photos')
  config.views.size = config.eval.resize = 8
  config.eval.batch_size = config.finetune.batch_size = 16
  config.finetune.update({'epochs': 6, 'learning_rate': 0.05, **finetune})
  return config


def settings_of(**changes):
  return FinetuneSettings(**config_of(**changes).finetune)


def initial_state(network, variables, settings):
  """The state that fine-tuning starts with, of four classes."""
  return jax.jit(lambda variables: finetune.init_state(network, variables, 4, settings))(variables)


def source(labels, seed=0, **kinds):
  return ArraySource(coloured(labels, seed), labels, 4, **kinds)


def test_learns_and_leaves_the_encoder_alone(mesh, variables, open_session):
  before, said = jax.tree.map(np.copy, variables), []
  test = source(LABELS[:30], 1)
  session = open_session(mesh, log=said.append)
  figures = finetune.finetune(encoder_of(variables), source(LABELS), test, config_of(), session)
  assert figures == {'top1': 1.0, 'top5': 1.0, 'num_labels': 40}
  assert said[0] == '40 labelled images of 4 classes, 2 steps an epoch'
  assert len(said) == 7
  jax.tree.map(np.testing.assert_array_equal, before, variables)


def patterned(count, seed):
  """Stripes that lie or stand, in random colours: what no mean colour tells."""
  rng = np.random.default_rng(seed)
  labels = np.arange(count) % 2
  colours = rng.integers(0, 256, (count, 2, 3))
  rows, columns = np.mgrid[:8, :8] // 2 % 2
  images = np.where(labels[:, None, None, None], colours[:, rows], colours[:, columns])
  return ArraySource(images.astype(np.uint8), labels)


def test_a_trained_encoder_beats_a_random_one_with_few_labels(mesh8, variables, open_session):
  """With four labels a class and the encoder nearly still, only what it knows already can help."""
  many = settings_of(learning_rate=0.2, head_learning_rate=0.2, epochs=15, batch_size=32, crop=(0.5, 1.0))
  learnt = finetune.train(NETWORK, variables, patterned(128, 0), SPEC, many, 0, open_session(mesh8))
  trained = finetune.encoder_of(learnt.params, learnt.batch_stats)
  few = config_of(labels=1 / 16, head_learning_rate=0.3, epochs=3)
  few.finetune.learning_rate = 1e-4
  reached = [finetune.finetune(encoder_of(each), patterned(128, 1), patterned(64, 2), few,
                               open_session(mesh8, name))
             for name, each in (('trained', trained), ('random', variables))]
  assert [figures['num_labels'] for figures in reached] == [8, 8]
  assert reached[0]['top1'] > reached[1]['top1'] + 0.2


def test_steps_are_those_of_two_optimizers(variables):
  """Encoder and layer each by optax's SGD at its own rate, on the same gradient."""
  settings = settings_of(learning_rate=0.02, head_learning_rate=0.5, epochs=3, batch_size=8,
                         weight_decay=0.01, schedule='steps', milestones=(0.5,), crop=(1.0, 1.0))
  view = dataclasses.replace(SPEC, count=1, jitter=0.0, grayscale=0.0, blur=0.0)
  step_fn = jax.jit(finetune.make_step(NETWORK, view, settings, 0, 2))
  state = initial_state(NETWORK, variables, settings)
  def sgd(rate):
    schedule = optax.piecewise_constant_schedule(rate, {3: 0.1})
    return optax.chain(optax.add_decayed_weights(0.01), optax.sgd(schedule, momentum=0.9))
  optimizer = optax.multi_transform({'encoder': sgd(0.02), 'head': sgd(0.5)},
                                    {'encoder': 'encoder', 'head': 'head'})
  params, batch_stats = state.params, state.batch_stats['encoder']
  opt_state, rng = optimizer.init(params), np.random.default_rng(0)
  updates_of = jax.jit(optimizer.update)

  @jax.jit
  def gradient(params, batch_stats, images, labels):
    def loss(params):
      features, changed = NETWORK.apply({'params': params['encoder'], 'batch_stats': batch_stats}, images,
                                        mode='batch', mutable=['batch_stats'])
      logits = features @ params['head']['kernel'] + params['head']['bias'][None]
      picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
      return -picked.mean(), changed['batch_stats']
    return jax.grad(loss, has_aux=True)(params)

  for step in range(6):
    labels = rng.integers(0, 4, 8).astype(np.int32)
    images = coloured(labels, step)
    labels[7] = -1  # One without a label stands for every image that does not count.
    batch = {'views': (images[:, None],), 'flip': np.zeros((8, 1), bool), 'valid': np.arange(8) != 6,
             'id': np.arange(8, dtype=np.int32), 'label': labels}
    state, _, _ = step_fn(state, batch)
    gradients, batch_stats = gradient(params, batch_stats, augment.normalise(images[:6], SPEC), labels[:6])
    with jax.numpy_dtype_promotion('standard'):  # Optax's schedules promote the step.
      updates, opt_state = updates_of(gradients, opt_state, params)
    params = optax.apply_updates(params, updates)
  assert np.abs(params['head']['kernel']).max() > 0.1
  for ours, theirs in ((state.params, params), (state.batch_stats['encoder'], batch_stats)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), ours, theirs)


def test_rates_fall_with_the_distance_from_the_output(variables):
  """One step of AdamW for every array at its own rate, of a transformer of two blocks."""
  network = VisionTransformer((1, 1), 16, patch=4)
  shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  rng = np.random.default_rng(1)
  start = jax.tree.map(lambda leaf: rng.uniform(-0.5, 0.5, leaf.shape).astype(np.float32), shapes)
  settings = settings_of(optimizer='adamw', layer_decay=0.5, learning_rate=0.01, head_learning_rate=0.1,
                         momentum=0.8, weight_decay=0.1, crop=(1.0, 1.0))
  state = initial_state(network, start, settings)
  labels = np.arange(8, dtype=np.int32) % 4
  batch = {'views': (coloured(labels, 0)[:, None],), 'flip': np.zeros((8, 1), bool),
           'valid': np.ones(8, bool), 'id': np.arange(8, dtype=np.int32), 'label': labels}
  # A head of zeros gives the encoder no gradient.
  head = {'kernel': rng.normal(size=(16, 4)).astype(np.float32), 'bias': np.zeros(4, np.float32)}
  state = state.replace(params={**state.params, 'head': head})
  view = dataclasses.replace(SPEC, count=1, jitter=0.0, grayscale=0.0, blur=0.0)
  after, _, _ = jax.jit(finetune.make_step(network, view, settings, 0, 2))(state, batch)

  def loss(params):
    features = network.apply({'params': params['encoder']}, augment.normalise(batch['views'][0][:, 0], SPEC))
    logits = features @ params['head']['kernel'] + params['head']['bias'][None]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()
  gradients = jax.jit(jax.grad(loss))(state.params)
  rates = {('head', 'kernel'): 0.1, ('encoder', 'norm', 'scale'): 0.01,
           ('encoder', 'stage2', 'block0', 'qkv', 'kernel'): 0.01 / 2,
           ('encoder', 'stage1', 'block0', 'hidden', 'bias'): 0.01 / 4,
           ('encoder', 'token'): 0.01 / 8, ('encoder', 'stem', 'kernel'): 0.01 / 8}
  at_places = [[np.asarray(functools.reduce(lambda part, name: part[name], place, tree)) for place in rates]
               for tree in (gradients, state.params, after.params)]

  @jax.jit
  def updates_of(gradients, params):
    optimizers = [optax.adamw(rate, b1=0.8, weight_decay=0.1) for rate in rates.values()]
    return [optimizer.update(gradient, optimizer.init(before), before)[0]
            for optimizer, gradient, before in zip(optimizers, gradients, params, strict=True)]
  with jax.numpy_dtype_promotion('standard'):  # Optax promotes the count.
    expected = updates_of(*at_places[:2])
  for gradient, before, found, updates in zip(*at_places, expected, strict=True):
    known = np.abs(gradient) > 1e-6  # Below, the first step of Adam has no sign to go by.
    np.testing.assert_allclose((found - before)[known], updates[known], rtol=2e-2, atol=1e-6)


def test_every_image_is_evaluated_once(mesh, variables, monkeypatch):
  """A layer with one order of the classes; 27 images, of which one of class 1 is broken, in batches of 16."""
  labels, counted, extract = np.arange(27) % 6, [], finetune.extract
  def seen(*args, **kinds):
    counted.append(found := extract(*args, **kinds))
    return found
  monkeypatch.setattr(finetune, 'extract', seen)
  head = {'kernel': jnp.zeros((8, 6)), 'bias': jnp.array([0.0, 5.0, 4.0, 3.0, 2.0, 1.0])}
  params = {'encoder': variables['params'], 'head': head}
  state = supervised_state(params, {'encoder': variables['batch_stats']}, optax.sgd(0.1))
  images = ArraySource(coloured(labels % 4), labels, 6, broken=[1])
  found = finetune.evaluate(NETWORK, state, images, VIEW, 16, mesh)
  assert found == pytest.approx((((labels == 1).sum() - 1) / 26, 1 - (labels == 0).sum() / 26))
  np.testing.assert_array_equal(to_host(counted[0])[2], np.delete(np.arange(27), 1))


def test_half_precision_is_trained_in_float32(variables):
  narrow = dataclasses.replace(encoder_of(variables), network=NETWORK.clone(dtype=jnp.float16))
  assert encoders.trainable(narrow).dtype == jnp.float32
  assert encoders.trainable(encoder_of(variables)) is NETWORK


@pytest.mark.parametrize(('changes', 'message'), [
  ({'schedule': 'plateau'}, "is 'plateau'; available: cosine, steps"),
  ({'milestones': (60, 80)}, 'share of the training between 0 and 1'),
  ({'labels': 0.0}, 'share of the labels'), ({'labels': 1.5}, 'share of the labels'),
  ({'head_learning_rate': 3e38}, 'Lower config.finetune.learning_rate'),
  ({'batch_size': 12}, 'cannot be split over 8 devices')])
def test_what_cannot_be_is_told(variables, changes, message, open_session):
  config = config_of()
  config.finetune.update(changes)
  with pytest.raises(UserError, match=message):
    finetune.finetune(encoder_of(variables), source(LABELS), source(LABELS), config,
                      open_session(make_mesh()))


def test_all_labels_are_all_images_of_unequal_classes(mesh8, variables, open_session):
  unequal = source(np.repeat(np.arange(4), [20, 6, 4, 2]))
  config = config_of(epochs=1)
  figures = finetune.finetune(encoder_of(variables), unequal, source(LABELS), config, open_session(mesh8))
  assert figures['num_labels'] == 32


def test_images_that_cannot_be_decoded_stop_the_training(mesh8, variables, open_session):
  with pytest.raises(UserError, match=r'\d\d of 40 images cannot be decoded'):
    finetune.finetune(encoder_of(variables), source(LABELS, broken=range(20)), source(LABELS),
                      config_of(epochs=1), open_session(mesh8))


def test_too_few_labels_are_told(mesh8, variables, open_session):
  with pytest.raises(UserError, match='4 labelled images are too few to train on 8 devices'):
    finetune.finetune(encoder_of(variables), source(LABELS[:4]), source(LABELS), config_of(),
                      open_session(mesh8))
