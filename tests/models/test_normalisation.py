"""Batch norm against numpy in float64."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.models import BatchNorm

SHAPES = ((16, 3, 2, 5), (16, 5))


def data(shape, seed=0, mean=1.5):
  return np.random.default_rng(seed).normal(mean, 2.0, shape).astype(np.float32)


def variables(features=5, seed=1):
  rng = np.random.default_rng(seed)
  draw = lambda low, high: jnp.asarray(rng.uniform(low, high, features), jnp.float32)
  return {'params': {'scale': draw(0.5, 2), 'bias': draw(-1, 1)},
          'batch_stats': {'mean': draw(-1, 1), 'var': draw(0.5, 2)}}


@functools.partial(jax.jit, static_argnames=('mode', 'groups'))
def apply(state, x, mode, mask=None, members=None, groups=8):
  y, updated = BatchNorm(groups=groups).apply(state, x, mode, mask, members, mutable=['batch_stats'])
  return y, updated['batch_stats']


def reference(state, x, mode, mask=None, groups=1):
  """The output and the running mean and variance, in float64."""
  state = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state)
  params, stats = state['params'], state['batch_stats']
  mask = np.ones(len(x), bool) if mask is None else mask
  parts, means, variances = [], [], []
  for part, kept in zip(np.split(np.float64(x), groups), np.split(mask, groups), strict=True):
    values = part[kept].reshape(-1, x.shape[-1])
    mean, var = stats['mean'], stats['var']
    if len(values):
      means.append(values.mean(0))
      variances.append(values.var(0, ddof=1))
      if mode in ('batch', 'grouped'):
        mean, var = values.mean(0), values.var(0)
    parts.append((part - mean) / np.sqrt(var + 1e-5) * params['scale'] + params['bias'])
  if mode != 'frozen' and means:
    stats = {'mean': 0.9 * stats['mean'] + 0.1 * np.mean(means, 0),
             'var': 0.9 * stats['var'] + 0.1 * np.mean(variances, 0)}
  return np.concatenate(parts), stats


def assert_tree_close(actual, expected, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), dict(actual), expected)


@pytest.mark.slow
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('mode', ['batch', 'grouped', 'running', 'frozen'])
def test_matches_float64(mode, masked, shape):
  x, state = data(shape), variables()
  mask = None
  if masked:
    mask = np.random.default_rng(2).random(len(x)) < 0.7
    mask[:2] = True
  groups = 2 if mode == 'grouped' else 1
  y, stats = apply(state, x, mode, mask, groups=2)
  expected, expected_stats = reference(state, x, mode, mask, groups)
  kept = slice(None) if mask is None else mask
  np.testing.assert_allclose(y[kept], expected[kept], rtol=1e-4, atol=1e-5)
  assert_tree_close(stats, expected_stats, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('mode', ['batch', 'running'])
def test_masked_images_are_as_if_absent(mode):
  x, state = data(SHAPES[0]), variables()
  x[12:] = np.nan
  y, stats = apply(state, x, mode, np.arange(16) < 12)
  expected, expected_stats = apply(state, x[:12], mode)
  np.testing.assert_allclose(y[:12], expected, rtol=1e-5, atol=1e-6)
  assert_tree_close(stats, expected_stats, rtol=1e-6)


def test_group_without_images_is_left_out_of_the_running_statistics():
  x, state = data(SHAPES[0]), variables()
  mask = np.arange(16) >= 4
  _, stats = apply(state, x, 'grouped', mask, groups=4)
  assert_tree_close(stats, reference(state, x, 'grouped', mask, 4)[1], rtol=1e-5)


@pytest.mark.parametrize('mode', ['batch', 'grouped', 'running'])
def test_batch_without_images_changes_nothing(mode):
  state = variables()
  y, stats = apply(state, data(SHAPES[0]), mode, np.zeros(16, bool))
  assert np.isfinite(y).all()
  assert_tree_close(stats, state['batch_stats'], rtol=0)


def test_large_mean_does_not_cancel():
  x = data((64, 5), mean=3000.0)
  state = variables()
  state['batch_stats']['mean'] = jnp.full(5, 2999.0)
  y, _ = apply(state, x, 'batch')
  np.testing.assert_allclose(y, reference(state, x, 'batch')[0], atol=2e-3)


@pytest.mark.parametrize('mode', ['batch', 'grouped', 'running', 'frozen'])
def test_gradients(mode):
  state, mask = variables(), np.arange(8) != 3
  def run(params, x):
    y, _ = apply({**state, 'params': params}, x, mode, mask, groups=2)
    return jnp.sin(y)
  check_grads(run, (state['params'], data((8, 2, 5))), order=1, modes=('rev',), rtol=0.02,
              atol=0.02)


@pytest.mark.parametrize('mode', ['batch', 'grouped'])
@pytest.mark.parametrize('axes', [{'data': -1}, {'replica': 2, 'data': -1}])
def test_split_batch_gives_the_same(mode, axes):
  x, state = data((16, 4, 4, 5)), variables()
  mesh = meshes.make_mesh(axes)
  assert mesh.size == 8
  run = jax.jit(lambda state, x: apply(state, x, mode, groups=4))
  y, stats = run(jax.device_put(state, meshes.replicated(mesh)),
                 jax.device_put(x, meshes.batch_sharding(mesh)))
  assert y.sharding.is_equivalent_to(meshes.batch_sharding(mesh), y.ndim)
  expected, expected_stats = run(state, x)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
  assert_tree_close(stats, expected_stats, rtol=1e-5)


def test_statistics_stay_float32():
  x = jnp.asarray(data(SHAPES[0]), jnp.bfloat16)
  initial = BatchNorm().init(jax.random.key(0), x, 'batch')
  assert_tree_close(initial['batch_stats'], {'mean': np.zeros(5), 'var': np.ones(5)}, rtol=0)
  y, stats = apply(variables(), x, 'batch')
  assert y.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves((initial, stats))} == {jnp.dtype('float32')}
  assert_tree_close(stats, reference(variables(), np.float32(x), 'batch')[1], rtol=1e-5)


def test_unknown_mode_and_unequal_groups_are_told():
  with pytest.raises(ValueError, match='batch, grouped, running, frozen'):
    apply(variables(), data((4, 5)), 'sync')
  with pytest.raises(UserError, match='6 images does not divide into 4'):
    apply(variables(), data((6, 5)), 'grouped', groups=4)


@pytest.mark.slow
@pytest.mark.parametrize('shape', SHAPES)
def test_named_groups_are_the_consecutive_ones_of_the_shuffled_batch(mesh, shape):
  """Values, statistics and gradients, with images left out, though no image has moved."""
  x, state, order = data(shape), variables(), np.random.default_rng(3).permutation(16)
  members = np.empty(16, np.int32)
  members[order] = np.arange(16) // 4
  mask = np.ones(16, bool)
  mask[order[[3, 9]]] = False
  place = lambda *arrays: jax.device_put(arrays, meshes.batch_sharding(mesh))
  y, stats = apply(state, *place(x), 'grouped', *place(mask, members), groups=4)
  shuffled, expected_stats = apply(state, x[order], 'grouped', mask[order], groups=4)
  kept = mask[order]
  np.testing.assert_allclose(np.asarray(y)[order][kept], shuffled[kept], rtol=1e-4, atol=1e-5)
  assert_tree_close(stats, jax.device_get(dict(expected_stats)), rtol=1e-5, atol=1e-6)

  weights = data(shape, seed=5) * mask.reshape(-1, *(1,) * (len(shape) - 1))
  gradient = lambda x, mask, members, weights: jax.grad(
    lambda x: jnp.sum(apply(state, x, 'grouped', mask, members, groups=4)[0] * weights))(x)
  np.testing.assert_allclose(np.asarray(gradient(*place(x, mask, members, weights)))[order],
                             gradient(x[order], mask[order], None, weights[order]), rtol=1e-3, atol=1e-4)
