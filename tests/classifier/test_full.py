"""The partitioned classifier equals the dense softmax with optax's SGD."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import collective_sizes

from conic_jax import losses, optim
from conic_jax.classifier import full
from conic_jax.mesh import batch_sharding

DIM, FEATURES = 16, 24


def make_features(rng, num_instances):
  keys = jax.random.split(rng)
  features = losses.normalise(jax.random.normal(keys[0], (FEATURES, DIM)))
  return features, jax.random.randint(keys[1], (FEATURES,), 0, num_instances)


def make_rows(num_instances, mesh, norm=1.0):
  rows = full.init(jax.random.key(1), num_instances, DIM, norm, mesh.size)
  return jax.device_put(rows, batch_sharding(mesh))


@pytest.mark.parametrize('temperature', [0.1, 0.01])
@pytest.mark.parametrize('num_instances', [64, 61])
def test_scores_equal_the_dense_softmax_in_float64(mesh, num_instances, temperature):
  features, ids = make_features(jax.random.key(0), num_instances)
  weights = make_rows(num_instances, mesh, norm=0.3).weights
  score = lambda x: full.scores(weights, x, ids, num_instances=num_instances,
                                temperature=temperature, mesh=mesh)
  scores = jax.jit(score)(features)
  gradient = jax.jit(jax.grad(lambda x: score(x).loss.sum()))(features)

  with jax.enable_x64(True):
    x64 = jnp.asarray(np.asarray(features), jnp.float64)
    w64 = jnp.asarray(np.asarray(weights)[:num_instances], jnp.float64)
    w64 = w64 / jnp.linalg.norm(w64, axis=1, keepdims=True)

    def reference(x):
      logits = x @ w64.T / temperature
      return -jax.nn.log_softmax(logits)[jnp.arange(FEATURES), np.asarray(ids)]
    expected = reference(x64)
    expected_gradient = jax.grad(lambda x: reference(x).sum())(x64)
    correct = jnp.argmax(x64 @ w64.T, axis=1) == np.asarray(ids)
  np.testing.assert_allclose(scores.loss, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5 * np.abs(expected_gradient).max())
  np.testing.assert_array_equal(scores.correct, correct)


@pytest.mark.parametrize('num_instances', [64, 61])
def test_several_steps_equal_dense_sgd(mesh, num_instances):
  """Loss, feature gradient and rows over five steps, weight decay and momentum on every row."""
  temperature, lr, weight_decay, momentum = 0.1, 0.5, 1e-2, 0.9
  rows = make_rows(num_instances, mesh)
  dense = np.asarray(rows.weights)[:num_instances]
  optimizer = optim.sgd(weight_decay, momentum)
  opt_state = optimizer.init(dense)

  @jax.jit
  def step(rows, features, ids, valid):
    weights = valid / valid.sum()

    def loss_fn(x):
      scores = full.scores(rows.weights, x, ids, num_instances=num_instances,
                           temperature=temperature, mesh=mesh)
      return losses.masked_mean(scores.loss, valid), scores
    (loss, scores), gradient = jax.value_and_grad(loss_fn, has_aux=True)(features)
    rows = full.update(rows, features, ids, weights, scores.log_normaliser, jnp.float32(lr),
                       num_instances=num_instances, temperature=temperature, momentum=momentum,
                       weight_decay=weight_decay, mesh=mesh)
    return loss, gradient, rows

  @jax.jit
  def dense_step(dense, opt_state, features, ids, valid):
    def loss_fn(w, x):
      return losses.masked_mean(losses.instance_classification(x, w, ids, temperature), valid)
    loss, (row_gradient, gradient) = jax.value_and_grad(loss_fn, argnums=(0, 1))(dense, features)
    updates, opt_state = optimizer.update(row_gradient, opt_state, dense)
    return loss, gradient, optax.apply_updates(dense, jax.tree.map(lambda u: -lr * u, updates)), opt_state

  for index in range(5):
    features, ids = make_features(jax.random.key(10 + index), num_instances)
    valid = jnp.arange(FEATURES) != index
    loss, gradient, rows = step(rows, features, ids, valid)
    expected, expected_gradient, dense, opt_state = dense_step(dense, opt_state, features, ids, valid)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # Features of unit norm: the dense form also projects the gradient through its normalisation.
    radial = jnp.sum(gradient * features, axis=1, keepdims=True)
    np.testing.assert_allclose(gradient - radial * features, expected_gradient, atol=1e-6)
    assert rows.weights.sharding.is_equivalent_to(batch_sharding(mesh), 2)
  np.testing.assert_allclose(rows.weights[:num_instances], dense, rtol=2e-5, atol=2e-6)


def test_no_collective_is_as_large_as_the_rows(mesh8):
  num_instances = 4096
  rows = make_rows(num_instances, mesh8)
  features, ids = make_features(jax.random.key(0), num_instances)

  def step(rows, features, ids):
    _, pull = jax.vjp(lambda x: full.scores(
      rows.weights, x, ids, num_instances=num_instances, temperature=0.1, mesh=mesh8).loss, features)
    lse = full.scores(rows.weights, features, ids, num_instances=num_instances, temperature=0.1,
                      mesh=mesh8).log_normaliser
    weights = jnp.full(FEATURES, 1 / FEATURES)
    return pull(weights), full.update(
      rows, features, ids, weights, lse, jnp.float32(0.1), num_instances=num_instances,
      temperature=0.1, momentum=0.9, weight_decay=1e-4, mesh=mesh8)

  batch = jax.device_put((features, ids), batch_sharding(mesh8))
  text = jax.jit(step, donate_argnums=0).lower(rows, *batch).compile().as_text()
  sizes = collective_sizes(text)
  assert sizes, 'a partitioned softmax must communicate'
  assert max(sizes) <= FEATURES * DIM < num_instances // 8 * DIM


def test_rows_start_alike_on_any_mesh_and_for_any_n():
  few = full.init(jax.random.key(1), 10, DIM, 2.0, 1).weights
  many = full.init(jax.random.key(1), 61, DIM, 2.0, 8).weights
  assert few.shape == many.shape == (64, DIM)
  assert full.init(jax.random.key(1), 65_537, 2, 1.0, 1).weights.shape[0] == 66_560
  np.testing.assert_array_equal(few, many)
  np.testing.assert_allclose(np.linalg.norm(many, axis=1), 2.0, rtol=1e-6)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.bfloat16, 3e-2), (jnp.float16, 3e-3)])
def test_narrow_factors_stay_near_float32(mesh8, dtype, tolerance):
  features, ids = make_features(jax.random.key(0), 64)
  weights = make_rows(64, mesh8).weights
  score = lambda kind: full.scores(weights, features, ids, num_instances=64, temperature=0.1,
                                   mesh=mesh8, dtype=kind)
  exact, narrow = score(jnp.float32), score(dtype)
  assert narrow.loss.dtype == jnp.float32
  np.testing.assert_allclose(narrow.loss, exact.loss, rtol=tolerance, atol=tolerance)
  assert not np.array_equal(narrow.loss, exact.loss)
