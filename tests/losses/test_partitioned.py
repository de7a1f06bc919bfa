"""The partitioned, chunked classifier equals the dense softmax with SGD in float64."""
import contextlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import collective_sizes

from conic_jax import losses
from conic_jax.errors import UserError
from conic_jax.hardware import local_rows
from conic_jax.hardware.mesh import batch_sharding
from conic_jax.losses import negatives, partitioned, products, smoothing
from conic_jax.memories import instance_rows

DIM, IMAGES, VIEWS = 16, 16, 2
FEATURES = IMAGES * VIEWS
MOMENTUM, WEIGHT_DECAY, LR = 0.9, 1e-2, 0.5


def make_features(seed, num_instances):
  """Features of unit norm and ids, some of them more than once."""
  keys = jax.random.split(jax.random.key(seed))
  features = losses.normalise(jax.random.normal(keys[0], (FEATURES, DIM)))
  return features, jnp.repeat(jax.random.randint(keys[1], (IMAGES,), 0, num_instances), VIEWS)


def make_rows(num_instances, mesh, norm=1.0):
  rows = instance_rows.init(jax.random.key(1), num_instances, DIM, norm, mesh.size)
  return jax.device_put(rows, batch_sharding(mesh))


def make_hardest(ids, num_instances, k, lowest=0):
  """K other classes of each image, from `lowest` on."""
  rng = np.random.default_rng(0)
  choose = lambda own: [j for j in lowest + rng.permutation(num_instances - lowest) if j != own][:k]
  return jnp.array([choose(own) for own in np.asarray(ids)[::VIEWS]], jnp.int32)


def make_step(softmax, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY):
  """Loss, gradient of the features, scores and the rows after, jitted."""
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
  count = softmax.num_instances
  with jax.enable_x64(True):
    wide = lambda x: jnp.asarray(np.asarray(x), jnp.float64)
    weights, velocity = wide(rows.weights[:count]), wide(rows.momentum[:count])
    features, sample_weights, labels, factors = map(wide, (features, sample_weights, labels, factors))

    def loss_fn(weights, features):
      unit = weights / jnp.linalg.norm(weights, axis=1, keepdims=True)
      logits = features @ unit.T / softmax.temperature
      terms = jnp.exp(logits - logits.max(axis=1, keepdims=True))
      each = jnp.log((factors * terms).sum(axis=1)) - jnp.log((labels * terms).sum(axis=1))
      return jnp.sum(each * sample_weights), each
    (loss, each), (row_gradient, gradient) = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)(
      weights, features)
    velocity = momentum * velocity + row_gradient + weight_decay * weights
    rows = instance_rows.Rows(weights - LR * velocity, velocity)
    return jax.tree.map(np.asarray, (loss, each, gradient, rows))


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
    sample_weights = (jnp.arange(FEATURES) // VIEWS != index).astype(jnp.float32) / (FEATURES - VIEWS)
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
    sample_weights = (jnp.arange(FEATURES) // VIEWS != index).astype(jnp.float32) / (FEATURES - VIEWS)
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
  sample_weights = jnp.full(FEATURES, 1 / FEATURES)
  labels = own_labels(ids, num_instances)
  expected = reference(rows, features, ids, sample_weights, labels, np.where(labels, 1, beta), softmax)
  loss, gradient, _, rows = make_step(softmax)(rows, features, ids, sample_weights, None, None, True)
  np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
  assert_equal(gradient, expected[2])
  assert_equal(rows.weights[:num_instances], expected[3].weights)


@pytest.mark.slow
def test_drawn_negatives_are_the_only_ones_beside_the_batch(mesh):
  num_instances, count = 61, 20
  softmax = partitioned.Softmax(num_instances, 0.1, mesh, num_drawn=count, chunk_size=5)
  rows, (features, ids) = make_rows(num_instances, mesh), make_features(0, num_instances)
  key, sample_weights = jax.random.key(5), jnp.full(FEATURES, 1 / FEATURES)
  drawn = np.asarray(negatives.drawn(jnp.arange(num_instances), key, num_instances, count))
  taking_part = drawn | np.isin(np.arange(num_instances), np.asarray(ids))
  assert drawn.sum() == count < taking_part.sum() < num_instances
  labels = own_labels(ids, num_instances)
  factors = np.broadcast_to(taking_part, labels.shape)
  expected = reference(rows, features, ids, sample_weights, labels, factors, softmax)
  loss, gradient, _, rows = make_step(softmax)(rows, features, ids, sample_weights, None, key, True)
  np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
  assert_equal(gradient, expected[2])
  assert_equal(rows.weights[:num_instances], expected[3].weights)


@pytest.mark.slow
def test_a_step_that_is_skipped_changes_nothing(mesh):
  num_instances = 61
  softmax = partitioned.Softmax(num_instances, 0.1, mesh, smoothing=0.2, chunk_size=3)
  rows, (features, ids) = make_rows(num_instances, mesh), make_features(0, num_instances)
  hardest = make_hardest(ids, num_instances, 5)
  for momentum in (0.9, 0.0):
    *_, after = make_step(softmax, momentum)(
      instance_rows.Rows(rows.weights, rows.weights), features.at[0].set(jnp.nan), ids,
      jnp.full(FEATURES, 1 / FEATURES), hardest, None, False)
    np.testing.assert_array_equal(after.weights, rows.weights)
    np.testing.assert_array_equal(after.momentum, rows.weights)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_correct_and_an_id_out_of_range(mesh8, dtype):
  softmax = partitioned.Softmax(61, 0.1, mesh8, dtype)
  weights = make_rows(61, mesh8).weights
  features, ids = make_features(0, 61)
  features, ids = features.at[0].set(weights[ids[0]]), ids.at[1].set(61)
  scores = partitioned.scores(weights, features, ids, softmax)
  logits = np.asarray(features @ losses.normalise(weights[:61]).T)
  assert scores.correct[0]
  np.testing.assert_array_equal(scores.correct[2:], logits.argmax(axis=1)[2:] == np.asarray(ids)[2:])
  assert np.isnan(scores.loss[1])
  assert np.isfinite(scores.loss).sum() == FEATURES - 1


@pytest.mark.slow
def test_ids_of_no_class_have_no_loss(mesh8):
  features, _ = make_features(0, 61)
  ids = jnp.array([0, 60, -1, 61, 8, 0, 59, 60], jnp.int32)
  softmax = partitioned.Softmax(61, 0.1, mesh8)
  loss = partitioned.scores(make_rows(61, mesh8).weights, features[:8], ids, softmax).loss
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
  features = losses.normalise(rows.weights[ids] + 0.05 * features)
  sample_weights, labels = jnp.full(FEATURES, 1 / FEATURES), own_labels(ids, num_instances)
  expected = reference(rows, features, ids, sample_weights, labels, np.where(labels, 1, beta), softmax, 0.0,
                       0.0)
  loss, gradient, scores, new = make_step(softmax, 0.0, 0.0)(
    rows, features, ids, sample_weights, None, None, True)
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
  step, even = make_step(softmax, 0.0, 0.0), jnp.full(FEATURES, 1 / FEATURES)
  unit, long = (step(make_rows(61, mesh8, length), features, ids, even, None, None, True)[3].momentum
                for length in (1.0, norm))
  assert_equal(long * norm, unit, 1e-2)


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
  rows, (features, ids) = make_rows(num_instances, mesh8), make_features(0, num_instances)
  hardest = make_hardest(ids, num_instances, 5)
  step = jax.jit(lambda rows, *args: make_step(softmax)(rows, *args, None, True), donate_argnums=0)
  split = jax.device_put((features, ids, jnp.full(FEATURES, 1 / FEATURES), hardest), batch_sharding(mesh8))
  compiled = step.lower(rows, *split).compile()
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
  ids = jnp.arange(16) * 4 - 4
  values, valid = jnp.arange(16 * DIM, dtype=jnp.float32).reshape(16, DIM), jnp.arange(16) != 5
  new = jax.jit(lambda *args: instance_rows.write(*args, mesh))(rows, ids, values, valid)
  expected, momentum = np.array(rows.weights), np.array(rows.momentum)
  for id, value, good in zip(np.asarray(ids), np.asarray(values), np.asarray(valid)):
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
  weights = jnp.tile(jnp.eye(1, 4), (instance_rows.padded_rows(61, 8), 1))
  features = jnp.tile(jnp.eye(1, 4), (8, 1))
  ids = jnp.arange(8, dtype=jnp.int32) * 7
  scores = partitioned.scores(weights, features, ids, partitioned.Softmax(61, 0.1, mesh8))
  assert scores.correct.all()
  nearer = weights.at[60].set(jnp.array([1.0, 1e-3, 0.0, 0.0])).at[:60].set(jnp.array([1.0, 1e-2, 0.0, 0.0]))
  assert not partitioned.scores(nearer, features, ids, partitioned.Softmax(61, 0.1, mesh8)).correct.any()


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
  found = local_rows.read(*jax.device_put((table, ids), batch_sharding(mesh)), mesh)
  np.testing.assert_array_equal(found, table[ids])
  assert found.sharding.is_equivalent_to(batch_sharding(mesh), 2)


@pytest.mark.parametrize(('images', 'expected'), [
  (256, (1, 256)), (4096, (16, 256)), (7, (1, 7)), (331, (331, 1))])
def test_images_are_gathered_for_in_as_few_blocks_as_16_mib_allow(images, expected):
  """Of 100 rows of 128 each 327 images fit; blocks are of equal size, so that 331 are one by one."""
  blocks, = smoothing._blocks((jnp.zeros((images, 3)),), 100 * 128)
  assert blocks.shape == (*expected, 3)
