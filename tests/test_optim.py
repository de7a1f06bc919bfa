"""SGD as PyTorch's, the cosine and the loss scale."""
import jax.numpy as jnp
import numpy as np
import pytest

from conic_jax import optim
from conic_jax.state import LossScale


def test_sgd_with_decay_and_momentum_by_hand():
  optimizer = optim.sgd(weight_decay=0.1, momentum=0.9)
  params = {'w': jnp.array([[1.0]])}
  state = optimizer.init(params)
  w, v = 1.0, 0.0
  for gradient, lr in [(0.5, 0.1), (-0.2, 0.05), (0.3, 0.2)]:
    updates, state = optimizer.update({'w': jnp.array([[gradient]])}, state, params)
    params = optim.apply_updates(params, updates, jnp.float32(lr))
    v = 0.9 * v + gradient + 0.1 * w
    w -= lr * v
  np.testing.assert_allclose(params['w'], [[w]], rtol=1e-6)


def test_vectors_can_be_left_out_of_decay():
  optimizer = optim.sgd(0.1, 0.9, optim.no_decay_on_vectors)
  params = {'kernel': jnp.ones((2, 2)), 'scale': jnp.ones(2)}
  updates, _ = optimizer.update({'kernel': jnp.zeros((2, 2)), 'scale': jnp.zeros(2)},
                                optimizer.init(params), params)
  np.testing.assert_allclose(updates['kernel'], 0.1)
  np.testing.assert_allclose(updates['scale'], 0.0)


@pytest.mark.parametrize(('step', 'rate'), [(0, 0.02), (4, 0.1), (5, 0.1), (10, 0.05), (15, 0.0), (20, 0.0)])
def test_cosine_after_a_linear_warm_up(step, rate):
  np.testing.assert_allclose(optim.cosine_schedule(0.1, 15, warmup_steps=5)(step), rate, atol=1e-8)


def test_conics_schedule_is_a_bare_cosine():
  schedule = optim.cosine_schedule(0.06, 100)
  expected = [0.03 * (1 + np.cos(np.pi * step / 100)) for step in range(100)]
  np.testing.assert_allclose([schedule(step) for step in range(100)], expected, rtol=1e-5, atol=1e-8)


def test_loss_scale_halves_on_overflow_and_doubles_after_good_steps():
  scale = LossScale.create(jnp.float16)
  assert scale.scale == 2.0**15
  assert scale.next(jnp.array(False)).scale == 2.0**14
  ready = scale.replace(good_steps=jnp.int32(LossScale.GROWTH_STEPS - 1))
  grown = ready.next(jnp.array(True))
  assert (grown.scale, grown.good_steps) == (2.0**16, 0)
  assert LossScale.create(jnp.float32).scale == 1.0


def test_loss_scale_has_a_floor_and_a_ceiling():
  low = LossScale(jnp.float32(1), jnp.int32(0))
  assert low.next(jnp.array(False)).scale == 1.0
  high = LossScale(jnp.float32(LossScale.LARGEST), jnp.int32(LossScale.GROWTH_STEPS - 1))
  assert high.next(jnp.array(True)).scale == LossScale.LARGEST
