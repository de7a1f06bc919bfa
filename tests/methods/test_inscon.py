"""InsCon's mosaics and cells, by hand, and what its settings must allow."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import as_method

from conic_jax import methods
from conic_jax.errors import UserError
from conic_jax.memories.memory import update_all
from conic_jax.methods import inscon
from conic_jax.models import roi

SMALL = {'head.norm': False, 'queue.size': 40, 'batch_norm.groups': 2, 'cell.hidden': 16,
         'cell.features': 8, 'cell.queue': 150}


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def make(tiny_config, mesh8):
  def with_settings(**changes):
    config = as_method(tiny_config, 'inscon', **{**SMALL, **changes})
    return methods.make(config, 100, mesh8, jnp.dtype('float32'))
  return with_settings


def test_a_mosaic_is_four_consecutive_views_row_by_row():
  views = jnp.arange(8 * 2 * 3).reshape(8, 2, 3, 1)
  whole = inscon.mosaics(views)
  assert whole.shape == (2, 4, 6, 1)
  for mosaic in range(2):
    for quadrant in range(4):
      top, left = quadrant // 2 * 2, quadrant % 2 * 3
      np.testing.assert_array_equal(whole[mosaic, top:top + 2, left:left + 3], views[4 * mosaic + quadrant])
  np.testing.assert_array_equal(inscon.of_mosaics(jnp.arange(8) != 5), [True, False])


@pytest.mark.slow
def test_losses_are_equations_2_and_3(make):
  method, rng = make(), np.random.default_rng(1)
  state = jax.jit(lambda: method.init(jax.random.key(0), {'views': tuple(
    jnp.zeros((1, group.count, group.size, group.size, 3)) for group in method.views)}))()[2]
  ids, valid = jnp.arange(8), jnp.arange(8) != 6
  batch = {'id': ids, 'valid': valid}
  shared, own = (np.float64(state[name].keys)[:size] for name, size in (('queue', 40), ('cell_queue', 150)))

  queries, keys = (unit(rng.normal(size=(8, 8))) for _ in range(2))
  positives = np.exp((queries * keys).sum(1) / 0.1).reshape(2, 4).sum(1)
  negatives = np.exp(queries @ shared.T / 0.1).sum(1).reshape(2, 4).sum(1)
  found = jax.jit(method.multi_loss)(np.float32(queries), np.float32(keys), state['queue'], batch)
  np.testing.assert_allclose(found, -np.log(positives / (positives + negatives))[0], rtol=1e-4)

  queries, keys = (unit(rng.normal(size=(8, 9, 8))) for _ in range(2))
  positives = np.exp((queries * keys).sum(2) / 0.2).sum(1)
  negatives = np.exp(queries @ own.T / 0.2).sum((1, 2))
  expected = -np.log(positives / (positives + negatives))[np.asarray(valid)].mean()
  found = jax.jit(method.cell_loss)(np.float32(queries), np.float32(keys), state['cell_queue'], batch)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_a_step_is_that_of_plain_passes(make):
  """The sum of the three losses, the keys that enter both queues, the average, on random crops and flips."""
  method, rng = make(**{'batch_norm.groups': 0}), np.random.default_rng(2)
  groups = method.views
  params, stats, state = jax.jit(lambda: method.init(jax.random.key(0), {'views': tuple(
    jnp.zeros((1, group.count, group.size, group.size, 3)) for group in groups)}))()
  own = jax.tree.map(lambda leaf: np.float32(leaf + 0.05 * rng.normal(size=leaf.shape)),
                     jax.device_get(state['key']['params']))
  state = {**state, 'key': {**state['key'], 'params': own}}
  corner = rng.uniform(0, 0.3, (8, 3, 2))
  batch = {
    'views': tuple(rng.normal(size=(8, group.count, group.size, group.size, 3)).astype(np.float32)
                   for group in groups),
    'id': np.arange(8, dtype=np.int32) + 20, 'valid': np.ones(8, bool),
    'crop': np.concatenate([corner, corner + rng.uniform(0.4, 0.7, (8, 3, 2))], axis=-1).astype(np.float32),
    'flip': rng.random((8, 3)) < 0.5}
  loss, aux = jax.jit(method.loss)(params, stats, state, batch, jax.random.key(1))
  after = jax.jit(functools.partial(update_all, method.memories))(
    state, aux.seen, params, jnp.int32(0), jnp.float32(0), jnp.bool(True))

  maps_of = jax.jit(lambda params, images: method.network.encoder.apply(
    {'params': params['encoder'], 'batch_stats': stats['encoder']}, images, mode='batch', stages=True,
    mutable=['batch_stats'])[0])
  head = lambda module, params, features: unit(np.asarray(
    jax.jit(module.apply)({'params': params}, features)))
  pool = jax.jit(functools.partial(roi.precise_pool, size=3))

  def nce(queries, keys, queue, count, temperature):
    """[n, P, D] against [n, P, D] and the first keys of a queue."""
    positives = np.exp((queries * keys).sum(-1) / temperature).sum(-1)
    negatives = np.exp(queries @ np.asarray(queue.keys)[:count].T / temperature).sum((-1, -2))
    return -np.log(positives / (positives + negatives)).mean()

  def cells_of(params, maps, view):
    """By the edges of the overlap in the image, one image at a time."""
    found = []
    for image in range(8):
      y0, x0, y1, x1 = np.asarray(batch['crop'][image, view], np.float64)
      both = np.asarray(batch['crop'][image, :2], np.float64)
      top, left, bottom, right = *both[:, :2].max(0), *both[:, 2:].min(0)
      box = np.array([(top - y0) / (y1 - y0), (left - x0) / (x1 - x0),
                      (bottom - y0) / (y1 - y0), (right - x0) / (x1 - x0)])
      flipped = bool(batch['flip'][image, view])
      if flipped:
        box[[1, 3]] = 1 - box[[3, 1]]
      pooled = pool(maps['stage1'][image:image + 1], np.float32(box * 16)[None])
      pooled = np.asarray(pooled)[0]
      found.append((pooled[:, ::-1] if flipped else pooled).reshape(9, -1))
    return head(method.cell_head, params['cell_head'], np.asarray(found))

  query_maps, key_maps = maps_of(params, batch['views'][0][:, 0]), maps_of(own, batch['views'][0][:, 1])
  queries = head(method.network.head, params['head'], query_maps['features'])
  keys = head(method.network.head, own['head'], key_maps['features'])
  small = np.asarray(batch['views'][1][:, 0])
  rows = [np.concatenate(small[first:first + 2], axis=1) for first in (0, 2, 4, 6)]
  whole = np.stack([np.concatenate(rows[:2]), np.concatenate(rows[2:])])
  quarter = np.asarray(maps_of(params, whole)['stage1']).reshape(2, 2, 8, 2, 8, -1).mean((2, 4))
  quadrants = head(method.multi_head, params['multi_head'], quarter.reshape(8, -1))
  query_cells, key_cells = cells_of(params, query_maps, 0), cells_of(own, key_maps, 1)
  expected = (nce(queries[:, None], keys[:, None], state['queue'], 40, 0.1)
              + nce(quadrants.reshape(2, 4, -1), keys.reshape(2, 4, -1), state['queue'], 40, 0.1)
              + nce(query_cells, key_cells, state['cell_queue'], 150, 0.2))
  np.testing.assert_allclose(loss, expected, rtol=1e-4)

  np.testing.assert_allclose(after['queue'].keys[:8], keys, atol=1e-4)
  np.testing.assert_array_equal(after['queue'].ids[:8], batch['id'])
  np.testing.assert_allclose(after['cell_queue'].keys[:72], key_cells.reshape(72, -1), atol=1e-4)
  np.testing.assert_array_equal(after['cell_queue'].ids[:72], np.repeat(batch['id'], 9))
  momentum = method.key.start
  jax.tree.map(lambda new, old, ours: np.testing.assert_allclose(
    new, momentum * old + (1 - momentum) * ours, rtol=1e-5, atol=1e-6),
    after['key']['params'], own, {name: params[name] for name in own})


@pytest.mark.parametrize(('changes', 'message'), [
  ({'cell.queue': 143}, r'config.cell.queue is 143, smaller than the 144 keys of a batch'),
  ({'batch_norm.groups': 8}, r'The 4 mosaics of a batch of 16 do not divide into config.batch_norm.groups 8: '
                             r'set config.batch_size to a multiple of 32'),
  ({'cell.position': 'res3'}, r"config.cell.position is 'res3'; available: res5, res4"),
  ({'cell.position': 'res4'}, r"config.cell.position is 'res4' and the network has 1 stage"),
  ({'views.overlap': 0.0}, r'config.views.overlap is 0'),
  ({'views.size': 15}, r'config.views.size, 15, of 2'),
  ({'views.size': 8, 'encoder.stem': 'imagenet'},
   r'The map of stage1 is 2×2 for views of 8 pixels, too small for 3×3'),
  ({'views.size': 4, 'encoder.stem': 'imagenet', 'cell.enabled': False},
   r'The map of stage1 is 1×1 for views of 4 pixels, too small for 2×2'),
])
def test_bad_settings_are_told_before_training(make, changes, message):
  with pytest.raises(UserError, match=message):
    make(**changes)


@pytest.mark.parametrize(('multi', 'cell', 'heads', 'groups'), [
  (False, False, {'encoder', 'head'}, 1), (True, False, {'encoder', 'head', 'multi_head'}, 2),
  (False, True, {'encoder', 'head', 'cell_head'}, 1)])
def test_each_head_can_be_alone(make, multi, cell, heads, groups):
  method = make(**{'multi.enabled': multi, 'cell.enabled': cell})
  batch = {'views': tuple(jnp.zeros((1, group.count, group.size, group.size, 3)) for group in method.views)}
  params, _, state = jax.eval_shape(lambda: method.init(jax.random.key(0), batch))
  assert set(params) == heads
  assert len(method.views) == groups
  assert ('cell_queue' in state) == cell
  assert set(state['key']['params']) == heads - {'multi_head'}
