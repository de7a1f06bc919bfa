"""The baseline learns what the split rows learn, from the same rows."""
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import as_method

from conic_jax import methods
from conic_jax.errors import UserError
from conic_jax.losses import partitioned
from conic_jax.memories import instance_rows

N = 48


@pytest.mark.slow
def test_loss_and_gradients_are_those_of_split_rows(tiny_config, mesh8):
  method = methods.make(as_method(tiny_config, 'data_parallel'), N, mesh8, jnp.dtype(jnp.float32))
  rows = instance_rows.init(jax.random.key(0), N, 8, 1.0, 8)
  features = np.random.default_rng(1).normal(size=(32, 8)).astype(np.float32)
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  features[:9] = rows.weights[np.arange(9) // 2 * 3]
  batch = {'id': np.arange(16, dtype=np.int32) * 3, 'valid': np.arange(16) != 5}

  def copied(weights, features):
    classified = method.classify({'classifier': weights}, {}, features, batch, None)
    return jnp.sum(classified.scores.loss * classified.sample_weights), classified.scores
  (loss, scores), (row_gradient, gradient) = jax.jit(
    jax.value_and_grad(copied, argnums=(0, 1), has_aux=True))(rows.weights[:N], features)

  def split(features):
    ids = jnp.repeat(batch['id'], 2)
    scores = partitioned.scores(rows.weights, features, ids, method.softmax)
    weights = jnp.repeat(batch['valid'].astype(jnp.float32) / 15, 2) / 2
    return jnp.sum(scores.loss * weights), instance_rows.Classified(features, ids, weights, scores)

  @jax.jit
  def split_step(rows, features):
    (wanted, update), gradient = jax.value_and_grad(split, has_aux=True)(features)
    after = instance_rows.update(rows, update, jnp.float32(1), method.softmax, momentum=0.0, weight_decay=0.0)
    return wanted, update, gradient, after
  wanted, update, wanted_gradient, after = split_step(rows, features)
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)
  assert 9 <= scores.correct.sum() < 32
  chex.assert_trees_all_close(scores, update.scores, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(row_gradient, after.momentum[:N], rtol=1e-4, atol=1e-6)


def test_rows_that_would_learn_otherwise_are_refused(tiny_config, mesh8):
  config = as_method(tiny_config, 'data_parallel', **{'classifier.lr_scale': 30.0})
  with pytest.raises(UserError, match='lr_scale to 1'):
    methods.make(config, N, mesh8, jnp.dtype(jnp.float32))
