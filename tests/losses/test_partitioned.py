"""The partitioned, chunked classifier equals the dense softmax with SGD in float64."""
import contextlib
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import collective_sizes

from conic_jax.errors import UserError
from conic_jax.hardware import local_rows
from conic_jax.hardware.mesh import batch_sharding
from conic_jax.losses import negatives, partitioned, products, smoothing
from conic_jax.memories import instance_rows

DIM, IMAGES, VIEWS = 16, 16, 2
FEATURES = IMAGES * VIEWS
EVEN = np.full(FEATURES, 1 / FEATURES, np.float32)
MOMENTUM, WEIGHT_DECAY, LR = 0.9, 1e-2, 0.5


def make_features(seed, num_instances):
  """Features of unit norm and ids, some of them more than once."""
  rng = np.random.default_rng(seed)
  features = unit(rng.normal(size=(FEATURES, DIM)).astype(np.float32))
  return features, np.repeat(rng.integers(0, num_instances, IMAGES, np.int32), VIEWS)


def unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


@functools.cache
def make_rows(num_instances, mesh, norm=1.0):
  rows = instance_rows.init(jax.random.key(1), num_instances, DIM, norm, mesh.size)
  return jax.device_put(rows, batch_sharding(mesh))


def make_hardest(ids, num_instances, k, lowest=0):
  """K other classes of each image, from `lowest` on."""
  rng = np.random.default_rng(0)
  choose = lambda own: [j for j in lowest + rng.permutation(num_instances - lowest) if j != own][:k]
  return np.array([choose(own) for own in np.asarray(ids)[::VIEWS]], np.int32)


@functools.cache
def make_step(softmax, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY):
  """Loss, gradient of the features, scores and the rows after, jitted; once for equal settings."""
  @jax.jit
  def step(rows, features, ids, sample_weights, hardest, draw, applied):
    def loss_fn(x):
      scores = partitioned.scores(rows.weights, x, ids, softmax, hardest, draw)
      return jnp.sum(jnp.where(sample_weights > 0, scores.loss * sample_weights, 0)), scores
    (loss, scores), gradient = jax.value_and_grad(loss_fn, has_aux=True)(features)
    batch = instance_rows.Classified(features, ids, sample_weights, scores, hardest, draw)
    new = instance_rows.update(rows, batch, jnp.float32(LR), softmax, momentum=momentum,
                               weight_decay=weight_decay, applied=applied)
    return loss, gradient, scores, new
  return step


def reference(rows, features, ids, sample_weights, labels, factors, softmax, momentum=MOMENTUM,
              weight_decay=WEIGHT_DECAY):
  """The same in float64: labels [M, N] and the factor of each term in the normaliser [M, N]."""
  wide = lambda x: np.asarray(x, np.float64)
  weights, velocity = wide(rows.weights)[:softmax.num_instances], wide(rows.momentum)[:softmax.num_instances]
  features, sample_weights, labels, factors = map(wide, (features, sample_weights, labels, factors))
  directions = unit(weights)
  logits = features @ directions.T / softmax.temperature
  terms = np.exp(logits - logits.max(axis=1, keepdims=True))
  normaliser, target = ((kind * terms).sum(axis=1, keepdims=True) for kind in (factors, labels))
  each = np.log(normaliser / target)[:, 0]
  errors = (factors * terms / normaliser - labels * terms / target) / softmax.temperature
  errors *= sample_weights[:, None]
  along = errors.T @ features
  along -= (along * directions).sum(axis=1, keepdims=True) * directions
  row_gradient = along / np.linalg.norm(weights, axis=1, keepdims=True)
  velocity = momentum * velocity + row_gradient + weight_decay * weights
  new = instance_rows.Rows(weights - LR * velocity, velocity)
  return each @ sample_weights, each, errors @ directions, new


def draw_negatives(num_instances, key, count):
  """Which classes are drawn, bool [N]."""
  draw = jax.jit(negatives.drawn, static_argnums=(2, 3))
  return np.array(draw(np.arange(num_instances), key, num_instances, count))


def own_labels(ids, num_instances):
  return np.eye(num_instances)[np.asarray(ids)]


def assert_equal(actual, expected, tolerance=1e-5):
  """Within `tolerance` of the largest entry."""
  expected = np.asarray(expected)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize(('num_instances', 'temperature', 'chunk_size'), [
  (64, 0.1, 0), (61, 0.1, 3), (61, 0.01, 64), (61, 0.01, 5)])
def test_several_steps_equal_dense_sgd(mesh, num_instances, temperature, chunk_size):
  """Loss, feature gradient and rows, weight decay and momentum on every row, images left out."""
  softmax = partitioned.Softmax(num_instances, temperature, mesh, chunk_size=chunk_size)
  rows, step = make_rows(num_instances, mesh, norm=0.3), make_step(softmax)
  for index in range(3):
    features, ids = make_features(index, num_instances)
    sample_weights = np.float32(np.arange(FEATURES) // VIEWS != index) / (FEATURES - VIEWS)
    labels = own_labels(ids, num_instances)
    expected = reference(rows, features, ids, sample_weights, labels, np.ones_like(labels), softmax)
    loss, gradient, scores, rows = step(rows, features, ids, sample_weights, None, None, True)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    assert_equal(scores.loss, expected[1])
    assert_equal(gradient, expected[2])
    assert_equal(rows.momentum[:num_instances], expected[3].momentum)
    assert_equal(rows.weights[:num_instances], expected[3].weights)
    assert rows.weights.sharding.is_equivalent_to(batch_sharding(mesh), 2)


@pytest.mark.slow
@pytest.mark.parametrize('lowest', [0, 56], ids=['anywhere', 'on one device'])
@pytest.mark.parametrize('momentum', [0.9, 0.0])
def test_smoothed_labels_equal_eq_3(mesh, momentum, lowest):
  """One-Million, Eq. 2 and 3; all K of them may lie on the last of eight devices."""
  num_instances, k, alpha = 64, 5, 0.2
  softmax = partitioned.Softmax(num_instances, 0.15, mesh, smoothing=alpha, chunk_size=3)
  rows, step = make_rows(num_instances, mesh, norm=0.3), make_step(softmax, momentum)
  for index in range(3):
    features, ids = make_features(index, num_instances)
    hardest = make_hardest(ids, num_instances, k, lowest)
    sample_weights = np.float32(np.arange(FEATURES) // VIEWS != index) / (FEATURES - VIEWS)
    labels = (1 - alpha) * own_labels(ids, num_instances)
    np.put_along_axis(labels, np.repeat(np.asarray(hardest), VIEWS, axis=0), alpha / k, axis=1)
    expected = reference(rows, features, ids, sample_weights, labels, np.ones_like(labels), softmax, momentum)
    loss, gradient, scores, rows = step(rows, features, ids, sample_weights, hardest, None, True)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    assert_equal(scores.loss, expected[1])
    assert_equal(gradient, expected[2])
    assert_equal(rows.momentum[:num_instances], expected[3].momentum)
    assert_equal(rows.weights[:num_instances], expected[3].weights)


def test_the_weight_of_negatives_is_in_loss_and_gradients(mesh):
  num_instances, beta = 61, 3.5
  softmax = partitioned.Softmax(num_instances, 0.1, mesh, negative_weight=beta)
  rows, (features, ids) = make_rows(num_instances, mesh), make_features(0, num_instances)
  labels = own_labels(ids, num_instances)
  expected = reference(rows, features, ids, EVEN, labels, np.where(labels, 1, beta), softmax)
  loss, gradient, _, rows = make_step(softmax)(rows, features, ids, EVEN, None, None, True)
  np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
  assert_equal(gradient, expected[2])
  assert_equal(rows.weights[:num_instances], expected[3].weights)


@pytest.mark.slow
def test_drawn_negatives_are_the_only_ones_beside_the_batch(mesh):
  num_instances, count = 61, 20
  softmax = partitioned.Softmax(num_instances, 0.1, mesh, num_drawn=count, chunk_size=5)
  rows, (features, ids) = make_rows(num_instances, mesh), make_features(0, num_instances)
  key = jax.random.key(5)
  drawn = draw_negatives(num_instances, key, count)
  taking_part = drawn | np.isin(np.arange(num_instances), np.asarray(ids))
  assert drawn.sum() == count < taking_part.sum() < num_instances
  labels = own_labels(ids, num_instances)
  factors = np.broadcast_to(taking_part, labels.shape)
  expected = reference(rows, features, ids, EVEN, labels, factors, softmax)
  loss, gradient, _, rows = make_step(softmax)(rows, features, ids, EVEN, None, key, True)
  np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
  assert_equal(gradient, expected[2])
  assert_equal(rows.weights[:num_instances], expected[3].weights)


@pytest.mark.slow
def test_a_step_that_is_skipped_changes_nothing(mesh):
  num_instances = 61
  softmax = partitioned.Softmax(num_instances, 0.1, mesh, smoothing=0.2, chunk_size=3)
  rows, (features, ids) = make_rows(num_instances, mesh), make_features(0, num_instances)
  hardest = make_hardest(ids, num_instances, 5)
  features[0] = np.nan
  for momentum in (0.9, 0.0):
    *_, after = make_step(softmax, momentum)(
      instance_rows.Rows(rows.weights, rows.weights), features, ids, EVEN, hardest, None, False)
    np.testing.assert_array_equal(after.weights, rows.weights)
    np.testing.assert_array_equal(after.momentum, rows.weights)


@functools.cache
def score(softmax):
  return jax.jit(lambda weights, features, ids: partitioned.scores(weights, features, ids, softmax))


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_correct_and_an_id_out_of_range(mesh8, dtype):
  weights = make_rows(61, mesh8).weights
  features, ids = make_features(0, 61)
  features[0], ids[1] = weights[ids[0]], 61
  scores = score(partitioned.Softmax(61, 0.1, mesh8, dtype))(weights, features, ids)
  logits = features @ unit(np.asarray(weights[:61])).T
  assert scores.correct[0]
  np.testing.assert_array_equal(scores.correct[2:], logits.argmax(axis=1)[2:] == np.asarray(ids)[2:])
  assert np.isnan(scores.loss[1])
  assert np.isfinite(scores.loss).sum() == FEATURES - 1


@pytest.mark.slow
def test_ids_of_no_class_have_no_loss(mesh8):
  features, _ = make_features(0, 61)
  ids = np.array([0, 60, -1, 61, 8, 0, 59, 60], np.int32)
  loss = score(partitioned.Softmax(61, 0.1, mesh8))(make_rows(61, mesh8).weights, features[:8], ids).loss
  assert np.flatnonzero(np.isnan(loss)).tolist() == [2, 3]


@pytest.mark.slow
@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.bfloat16, 3e-2), (jnp.float16, 1e-2)])
@pytest.mark.parametrize('beta', [1.0, 1e-3, 1e-7])
def test_narrow_gradients_stay_near_float64_at_tiny_probabilities(mesh8, dtype, tolerance, beta):
  """The mean probability of a negative goes down to 1e-9, far below the smallest float16."""
  num_instances = 512
  softmax = partitioned.Softmax(num_instances, 0.15, mesh8, dtype, negative_weight=beta)
  rows = make_rows(num_instances, mesh8)
  features, ids = make_features(0, num_instances)
  features = unit(np.asarray(rows.weights)[ids] + 0.05 * features)
  labels = own_labels(ids, num_instances)
  expected = reference(rows, features, ids, EVEN, labels, np.where(labels, 1, beta), softmax, 0.0, 0.0)
  loss, gradient, scores, new = make_step(softmax, 0.0, 0.0)(rows, features, ids, EVEN, None, None, True)
  probability = -np.mean(scores.own_error) / (num_instances - 1)
  assert (probability < 1e-9) == (beta == 1e-7)
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, expected[0], rtol=tolerance)
  error = np.linalg.norm(np.asarray(gradient) - expected[2]) / np.linalg.norm(expected[2])
  assert 1e-6 < error < tolerance, 'narrow, and near'
  actual, wanted = np.asarray(new.momentum[:num_instances]), expected[3].momentum
  assert np.linalg.norm(actual - wanted) < tolerance * np.linalg.norm(wanted)


@pytest.mark.slow
def test_rows_too_long_for_float16_learn_as_unit_rows(mesh8):
  """The gradient of a row is 1/‖row‖ of that of its direction."""
  softmax, norm = partitioned.Softmax(61, 0.1, mesh8, jnp.float16), 2.0 ** 20
  features, ids = make_features(0, 61)
  step = make_step(softmax, 0.0, 0.0)
  short, long = (step(make_rows(61, mesh8, length), features, ids, EVEN, None, None, True)[3].momentum
                 for length in (1.0, norm))
  assert_equal(long * norm, short, 1e-2)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.bfloat16, 3e-2), (jnp.float16, 1e-2)])
def test_narrow_products_of_synthetic_cosines(dtype, tolerance):
  """Σⱼ Pⱼ w̄ⱼ and Σₘ Pₘ x̄ₘ with probabilities spread about 1e-9, as N = 10⁹ gives them."""
  rng = np.random.default_rng(0)
  cosines = np.clip(rng.normal(0, 0.2, (64, 2048)), -1, 1)
  probabilities = 1e-9 * np.exp(cosines / 0.15) / np.exp(cosines / 0.15).mean()
  vectors = rng.normal(size=(2048, DIM)) + 0.2
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  wanted = probabilities @ vectors
  actual = products.sum_products(jnp.float32(probabilities), jnp.float32(vectors), dtype)
  assert np.abs(actual - wanted).max() < tolerance * np.abs(wanted).max()


def test_neither_logits_nor_a_gradient_of_all_rows_is_stored(mesh8):
  num_instances = 65_536
  softmax = partitioned.Softmax(num_instances, 0.1, mesh8, smoothing=0.2, chunk_size=256)
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=batch_sharding(mesh8))
  rows = instance_rows.Rows(*[shape((num_instances, DIM), jnp.float32)] * 2)
  batch = (shape((FEATURES, DIM), jnp.float32), shape((FEATURES,), jnp.int32),
           shape((FEATURES,), jnp.float32), shape((IMAGES, 5), jnp.int32))
  step = jax.jit(lambda rows, *args: make_step(softmax)(rows, *args, None, True), donate_argnums=0)
  compiled = step.lower(rows, *batch).compile()
  local_rows = num_instances // 8 * DIM * 4
  assert compiled.memory_analysis().temp_size_in_bytes < local_rows / 2
  sizes = collective_sizes(compiled.as_text())
  assert sizes, 'a partitioned softmax must communicate'
  assert max(sizes) <= FEATURES * DIM


def test_rows_start_alike_on_any_mesh_and_for_any_n():
  few = instance_rows.init(jax.random.key(1), 10, DIM, 2.0, 1).weights
  many = instance_rows.init(jax.random.key(1), 61, DIM, 2.0, 8).weights
  assert few.shape == many.shape == (64, DIM)
  assert instance_rows.padded_rows(65_537, 1) == 66_560
  np.testing.assert_array_equal(few, many)
  np.testing.assert_allclose(np.linalg.norm(many, axis=1), 2.0, rtol=1e-6)
  some = jnp.array([60, 3])
  # Compiled for another number of rows, the last bit may differ.
  found = instance_rows.initial_rows(jax.random.key(1), some, DIM, 2.0)
  np.testing.assert_allclose(found, many[some], rtol=1e-6)


def test_rows_are_written_by_id(mesh):
  rows = make_rows(61, mesh)
  rows = instance_rows.Rows(rows.weights, rows.weights)
  ids = np.arange(16, dtype=np.int32) * 4 - 4
  values, valid = np.arange(16 * DIM, dtype=np.float32).reshape(16, DIM), np.arange(16) != 5
  new = jax.jit(lambda *args: instance_rows.write(*args, mesh))(rows, ids, values, valid)
  expected, momentum = np.array(rows.weights), np.array(rows.momentum)
  for id, value, good in zip(ids, values, valid):
    if good and id >= 0:
      expected[id], momentum[id] = value, 0
  np.testing.assert_array_equal(new.weights, expected)
  np.testing.assert_array_equal(new.momentum, momentum)


@pytest.mark.parametrize(('settings', 'terms'), [
  ({}, 61), ({'negative_weight': 0.5}, 1 + 0.5 * 60), ({'num_drawn': 7, 'negative_weight': 4.0}, 1 + 4 * 7)])
def test_the_loss_at_chance_counts_the_terms(mesh8, settings, terms):
  """The own class, and β for each negative."""
  assert partitioned.Softmax(61, 0.1, mesh8, **settings).chance_loss == pytest.approx(np.log(terms), rel=1e-6)


def test_smoothed_targets_of_other_numbers_of_features_are_refused():
  targets = lambda *arrays: smoothing.targets(*arrays, jnp.int32(0), 0.1)
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((61, 4), (8, 4))]
  hardest = jax.ShapeDtypeStruct((4, 3), jnp.int32)
  for count, refused in ((8, False), (7, True)):
    shift = jax.ShapeDtypeStruct((count,), jnp.float32)
    with pytest.raises(AssertionError, match='Chex') if refused else contextlib.nullcontext():
      jax.eval_shape(targets, *arrays, hardest, shift)


def test_smoothing_below_the_constant_maximum_is_refused(mesh8):
  with pytest.raises(UserError, match=r'config\.temperature is 0\.01'):
    partitioned.Softmax(64, 0.01, mesh8, smoothing=0.2)


@pytest.mark.slow
def test_an_exact_tie_counts_as_correct(mesh8):
  """The rows of all classes are the same: every class has the largest logit, on whatever device."""
  weights = np.tile(np.eye(1, 4, dtype=np.float32), (instance_rows.padded_rows(61, 8), 1))
  features = np.tile(np.eye(1, 4, dtype=np.float32), (8, 1))
  ids, find = np.arange(8, dtype=np.int32) * 7, score(partitioned.Softmax(61, 0.1, mesh8))
  assert find(weights, features, ids).correct.all()
  weights[:60, 1], weights[60, 1] = 1e-2, 1e-3
  assert not find(weights, features, ids).correct.any()


@pytest.mark.parametrize(('platform', 'num_features', 'expected'), [
  ('cpu', 64, 2048), ('tpu', 64, 65536), ('gpu', 8192, 8192), ('gpu', 2 ** 20, 2048)])
def test_a_chunk_is_as_large_as_suits_the_device(platform, num_features, expected):
  """2²⁶ logits, 256 MiB, at a time; fewer on a CPU, for its caches."""
  mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))
  softmax = partitioned.Softmax(10 ** 6, 0.1, mesh)
  assert partitioned.chunk_size(num_features, 10 ** 6, softmax) == expected
  assert partitioned.chunk_size(num_features, 100, softmax) == 100


def test_a_table_is_looked_up_wherever_its_entries_lie(mesh):
  """Among them the first and the last of each of eight devices."""
  table = np.random.default_rng(0).integers(1, 1000, (64, 5)).astype(np.int32)
  ids = np.array([0, 7, 8, 15, 16, 23, 24, 31, 32, 39, 40, 47, 48, 55, 56, 63], np.int32)[::-1]
  read = jax.jit(functools.partial(local_rows.read, mesh=mesh))
  found = read(*jax.device_put((table, ids), batch_sharding(mesh)))
  np.testing.assert_array_equal(found, table[ids])
  assert found.sharding.is_equivalent_to(batch_sharding(mesh), 2)


@pytest.mark.parametrize(('images', 'expected'), [
  (256, (1, 256)), (4096, (16, 256)), (7, (1, 7)), (331, (331, 1))])
def test_images_are_gathered_for_in_as_few_blocks_as_16_mib_allow(images, expected):
  """Of 100 rows of 128 each 327 images fit; blocks are of equal size, so that 331 are one by one."""
  blocks, = smoothing._blocks((jnp.zeros((images, 3)),), 100 * 128)
  assert blocks.shape == (*expected, 3)
