"""The momentum encoder's average against float64, and its schedule."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conic_jax.errors import UserError
from conic_jax.memories import momentum_encoder
from conic_jax.memories.momentum_encoder import MomentumEncoder


def test_an_average_follows_its_formula_over_many_steps():
  rng = np.random.default_rng(0)
  average, expected = {'w': jnp.zeros(3)}, np.zeros(3)
  step = jax.jit(functools.partial(momentum_encoder.average, momentum=0.99))
  for _ in range(300):
    new = np.float32(rng.normal(size=3))
    average, expected = step(average, {'w': new}), 0.99 * expected + 0.01 * new
  np.testing.assert_allclose(average['w'], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('schedule', 'step', 'expected'), [
  ('constant', 70, 0.9), ('cosine', 0, 0.9), ('cosine', 50, 0.95), ('cosine', 100, 1.0),
  ('cosine', 130, 1.0)])
def test_momentum_is_constant_or_goes_to_one(schedule, step, expected):
  found = momentum_encoder.momentum_at(0.9, schedule, jnp.int32(step), 100)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_another_schedule_is_refused():
  with pytest.raises(ValueError, match='available: constant, cosine'):
    momentum_encoder.momentum_at(0.9, 'linear', jnp.int32(0), 100)


def test_a_step_averages_what_it_began_with_and_takes_the_statistics():
  memory = MomentumEncoder(0.9, 'constant', 10)
  state = memory.init({'encoder': jnp.ones(3)}, {'encoder': jnp.zeros(3)})
  params = {'encoder': jnp.full(3, 2.0), 'predictor': jnp.zeros(2)}
  seen = {'encoder': jnp.full(3, 7.0)}
  update = lambda applied: memory.update(state, seen, params, jnp.int32(0), jnp.float32(1), jnp.bool(applied))
  after, skipped = update(True), update(False)
  assert set(after['params']) == {'encoder'}
  np.testing.assert_allclose(after['params']['encoder'], 1.1, rtol=1e-6)
  np.testing.assert_array_equal(after['batch_stats']['encoder'], 7)
  jax.tree.map(np.testing.assert_array_equal, skipped, state)


@pytest.mark.parametrize(('settings', 'message'), [
  ((0.9, 'linear'), "config.momentum.schedule is 'linear'"),
  ((1.5, 'cosine'), 'config.momentum.start is 1.5')])
def test_bad_settings_are_refused(settings, message):
  with pytest.raises(UserError, match=message):
    MomentumEncoder(*settings, total_steps=10)
