"""BYOL's loss from passes of one view at a time, and its target network."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import as_method

from conic_jax import methods
from conic_jax.errors import UserError
from conic_jax.memories.memory import update_all

BATCH = 8


@pytest.fixture
def method(tiny_config, mesh8):
  own = {'views.count': 1, 'predictor.hidden': 16, 'batch_size': BATCH, 'momentum.start': 0.9}
  config = as_method(tiny_config, 'byol', **own)
  return methods.make(config, 10 * BATCH, mesh8, jnp.dtype('float32'))


@pytest.fixture
def state(method):
  images = jnp.zeros((1, 1, 16, 16, 3))
  params, stats, own = jax.jit(lambda: method.init(jax.random.key(0), {'views': (images, images)}))()
  other = jax.tree.map(lambda leaf: leaf + 0.1, own['target']['params'])
  return params, stats, {'target': {**own['target'], 'params': other}}


@pytest.mark.slow
def test_the_loss_is_that_of_each_view_passed_alone(method, state):
  params, stats, own = state
  rng = np.random.default_rng(0)
  views = tuple(jnp.asarray(rng.normal(size=(BATCH, 1, 16, 16, 3)), jnp.float32) for _ in range(2))
  valid = jnp.arange(BATCH) != 5
  loss, aux = jax.jit(method.loss)(params, stats, own, {'views': views, 'valid': valid}, jax.random.key(0))

  unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)

  @jax.jit
  def alone(images):
    """The prediction of the online network and the projection of the target, of one view."""
    projected, _ = method.network.project(params, stats, images, valid, 'batch')
    predicted, _ = method.predictor.apply(
      {'params': params['predictor'], 'batch_stats': stats['predictor']}, projected, mode='batch', mask=valid,
      mutable=['batch_stats'])
    target, _ = method.network.project(
      own['target']['params'], own['target']['batch_stats'], images, valid, 'batch')
    return unit(predicted), unit(target)
  (p1, z1), (p2, z2) = (alone(view[:, 0]) for view in views)
  distances = ((p1 - z2) ** 2).sum(1) + ((p2 - z1) ** 2).sum(1)
  np.testing.assert_allclose(loss, distances[valid].mean(), rtol=1e-4)
  assert set(aux.seen['target']) == {'encoder', 'head'}


def test_the_target_follows_after_the_update_on_a_cosine(method, state):
  params, _, own = state
  seen = {'target': own['target']['batch_stats']}
  total = method.target.total_steps
  for step, momentum in ((0, 0.9), (total // 2, 0.95), (total, 1.0)):
    after = update_all(method.memories, own, seen, params, jnp.int32(step), jnp.float32(0), jnp.bool(True))
    expected = jax.tree.map(lambda old, new, m=momentum: m * old + (1 - m) * new, own['target']['params'],
                            {name: params[name] for name in ('encoder', 'head')})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                 after['target']['params'], expected)


def test_projector_and_predictor_end_without_a_bias_if_so_set(tiny_config, mesh8):
  for bias in (True, False):
    config = as_method(tiny_config, 'byol', **{
      'views.count': 1, 'predictor.hidden': 16, 'head.output_bias': bias, 'predictor.output_bias': bias})
    made = methods.make(config, 10 * BATCH, mesh8, jnp.dtype('float32'))
    images = jnp.zeros((1, 1, 16, 16, 3))
    params, _, _ = jax.eval_shape(made.init, jax.random.key(0), {'views': (images, images)})
    assert all(('bias' in params[part]['linear2']) == bias for part in ('head', 'predictor'))


def test_the_second_view_differs_in_its_own_settings_only(method, tiny_config, mesh8):
  first, second = method.views
  assert (first.blur, second.blur, second.solarise) == (tiny_config.views.blur, 0.1, 0.2)
  assert (first.size, first.count, second.size, second.count) == (16, 1, 16, 1)


@pytest.mark.parametrize(('change', 'message'), [
  ({'views.count': 2}, r'config.views.count is 2: BYOL takes one view'),
  ({'momentum.schedule': 'linear'}, r"config.momentum.schedule is 'linear'; available: constant, cosine"),
  ({'momentum.start': 1.5}, r'config.momentum.start is 1.5; it must be from 0 to 1')])
def test_bad_settings_are_told_before_training(tiny_config, mesh8, change, message):
  config = as_method(tiny_config, 'byol', **{'views.count': 1, **change})
  with pytest.raises(UserError, match=message):
    methods.make(config, 10 * BATCH, mesh8, jnp.dtype('float32'))
