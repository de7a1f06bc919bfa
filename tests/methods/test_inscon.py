"""InsCon's mosaics and cells, by hand, and what its settings must allow."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import as_method

from conic_jax import losses, methods
from conic_jax.errors import UserError
from conic_jax.methods import inscon
from conic_jax.models import roi

SMALL = {'queue.size': 40, 'batch_norm.groups': 2, 'cell.hidden': 16, 'cell.features': 8, 'cell.queue': 150}


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


def test_a_quadrant_is_the_query_of_its_own_image(make):
  """Where the map is the mosaic itself, the query of an image is the head's of its quadrant's mean."""
  method = make()
  views = np.random.default_rng(0).normal(size=(8, 1, 8, 8, 3)).astype(np.float32)
  maps = lambda params, stats, whole, valid, mode: ({'stage1': whole}, stats)
  method.network.maps = maps
  features = jnp.asarray(views[:, 0].mean((1, 2)))
  params = {'multi_head': method.multi_head.init(jax.random.key(0), features)['params']}
  batch = {'views': (None, jnp.asarray(views)), 'valid': jnp.ones(8, bool), 'id': jnp.arange(8)}
  queries, _ = method.multi_queries(params, {}, batch)
  expected = losses.normalise(method.multi_head.apply({'params': params['multi_head']}, features))
  np.testing.assert_allclose(queries, expected, rtol=1e-4, atol=1e-5)


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
  found = method.multi_loss(jnp.float32(queries), jnp.float32(keys), state['queue'], batch)
  np.testing.assert_allclose(found, -np.log(positives / (positives + negatives))[0], rtol=1e-4)

  queries, keys = (unit(rng.normal(size=(8, 9, 8))) for _ in range(2))
  positives = np.exp((queries * keys).sum(2) / 0.2).sum(1)
  negatives = np.exp(queries @ own.T / 0.2).sum((1, 2))
  expected = -np.log(positives / (positives + negatives))[np.asarray(valid)].mean()
  found = method.cell_loss(jnp.float32(queries), jnp.float32(keys), state['cell_queue'], batch)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize('flips', [(False, False), (True, False), (False, True), (True, True)])
def test_cells_of_both_views_are_the_same_place_of_the_image(make, flips):
  """A map of the source's coordinates gives the same cells in both views, however these are mirrored."""
  crop, side = np.array([[[0.1, 0.0, 0.7, 0.6], [0.2, 0.25, 1.0, 0.95]]], np.float32), 24
  method = make()
  method.cell_head = type('Same', (), {'apply': staticmethod(lambda variables, cells: cells)})()
  method.cell = type('Cell', (), {'size': 3, 'features': 3})()
  flip = np.array([flips])
  boxes = roi.overlap_boxes(jnp.asarray(crop), jnp.asarray(flip))
  cells = []
  for view in range(2):
    top, left, bottom, right = crop[0, view]
    centre = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid(top + centre * (bottom - top), left + centre * (right - left), indexing='ij')
    source = np.stack([y, x, np.ones_like(x)], axis=-1).astype(np.float32)[None]
    source = source[:, :, ::-1] if flips[view] else source
    maps = {'stage1': jnp.asarray(source)}
    cells.append(method.cells({'cell_head': {}}, maps, boxes[:, view], jnp.asarray(flip[:, view])))
  np.testing.assert_allclose(*cells, atol=5e-3)
  assert np.ptp(np.asarray(cells[0])[0, :, 1]) > 0.05


@pytest.mark.parametrize(('changes', 'message'), [
  ({'cell.queue': 143}, r'config.cell.queue is 143, smaller than the 144 keys of a batch'),
  ({'batch_norm.groups': 8}, r'The 4 mosaics of a batch of 16 do not divide into config.batch_norm.groups 8: '
                             r'set config.batch_size to a multiple of 32'),
  ({'cell.position': 'res3'}, r"config.cell.position is 'res3'; there is: res5, res4"),
  ({'cell.position': 'res4'}, r"config.cell.position is 'res4' and the network has 1 stage"),
  ({'views.overlap': 0.0}, r'config.views.overlap is 0'),
  ({'views.size': 15}, r'config.views.size, 15, of 2'),
  ({'views.size': 8, 'encoder.stem': 'imagenet'},
   r'The map of stage1 is 2×2 for views of 8 pixels, too small for 3×3'),
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
