"""Pooling into cells against numerical integration, and the cells of two crops of one image."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from conic_jax.models import roi

HEIGHT, WIDTH, CHANNELS = 4, 5, 2
BOXES = 6
coordinate = st.one_of(st.floats(-3, 9, width=32), st.sampled_from([0., 0.5, 1., 2.5, 4., 4.5, 5.]))
side = st.one_of(st.floats(0.0625, 8, width=32), st.sampled_from([1 / 1024, 0.5, 1., 3., 4., 5.]))
box = st.tuples(coordinate, coordinate, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
pool = jax.jit(roi.precise_pool, static_argnames=('size', 'outside'))
bins = jax.jit(roi.adaptive_pool, static_argnames='size')
overlap = jax.jit(roi.overlap_boxes)


def maps(count=1, height=HEIGHT, width=WIDTH, seed=0):
  return np.random.default_rng(seed).normal(size=(count, height, width, CHANNELS))


def surface(map, y, x, outside):
  """The bilinear surface at points y [n] × x [m], by interpolation between the two nearest features."""
  for axis, at in ((0, y), (1, x)):
    length = map.shape[axis]
    low = np.floor(at - 0.5).astype(int)
    far = at - 0.5 - low
    def take(index, axis=axis, length=length, map=map):
      values = np.take(map, np.clip(index, 0, length - 1), axis=axis)
      if outside == 'zero':
        inside = ((index >= 0) & (index < length)).astype(float)
        values = values * np.expand_dims(inside, tuple(i for i in range(3) if i != axis))
      return values
    far = np.expand_dims(far, tuple(i for i in range(3) if i != axis))
    map = (1 - far) * take(low) + far * take(low + 1)
  return map


def integrated(map, box, cells, outside, points=300):
  """Cell means by the midpoint rule on a fine grid: `points` a side for each cell."""
  sides = [low + (high - low) * (np.arange(count * points) + 0.5) / (count * points)
           for low, high, count in zip(box[:2], box[2:], cells, strict=True)]
  values = surface(map, *sides, outside)
  return values.reshape(cells[0], points, cells[1], points, -1).mean(axis=(1, 3))


@pytest.mark.slow
@pytest.mark.parametrize('outside', roi.OUTSIDE)
@settings(max_examples=12, deadline=None)
@given(boxes=st.lists(box, min_size=BOXES, max_size=BOXES), seed=st.integers(0, 99))
def test_cells_are_the_integral_of_the_surface(outside, boxes, seed):
  images, boxes = maps(BOXES, seed=seed), np.array(boxes)
  pooled = pool(jnp.float32(images), jnp.float32(boxes), size=(2, 3), outside=outside)
  expected = [integrated(image, box, (2, 3), outside) for image, box in zip(images, boxes, strict=True)]
  np.testing.assert_allclose(pooled, expected, atol=3e-5)


@pytest.mark.parametrize('outside', roi.OUTSIDE)
def test_a_map_of_one_feature(outside):
  boxes = np.array([[-1., 0.25, 3, 0.75]])
  pooled = pool(jnp.ones((1, 1, 1, 1)), jnp.float32(boxes), size=2, outside=outside)
  expected = integrated(np.ones((1, 1, 1)), boxes[0], (2, 2), outside)
  np.testing.assert_allclose(pooled[0], expected, atol=1e-5)


def test_edges_are_as_bright_as_the_rest():
  boxes = jnp.float32([[0, 0, HEIGHT, WIDTH], [-9, 3, 20, 3.001], [0.1, 0.2, 0.3, 0.4]])
  pooled = pool(jnp.ones((3, HEIGHT, WIDTH, 1)), boxes, size=3)
  np.testing.assert_allclose(pooled, np.ones_like(pooled), rtol=1e-6)
  darker = pool(jnp.ones((3, HEIGHT, WIDTH, 1)), boxes, size=3, outside='zero')
  assert darker[0, 0, 0, 0] < 0.9


@pytest.mark.slow
def test_an_empty_box_is_the_value_of_its_point():
  images, at = maps(), (1.875, 2.25)
  boxes = jnp.float32([[*at, *at]])
  run = lambda images, boxes: pool(images, boxes, size=3)
  pooled, pullback = jax.vjp(run, jnp.float32(images), boxes)
  value = surface(images[0], *np.array(at)[:, None], 'edge')
  np.testing.assert_allclose(pooled[0], np.broadcast_to(value, (3, 3, CHANNELS)), atol=1e-5)
  assert all(np.isfinite(gradient).all() for gradient in pullback(jnp.ones_like(pooled)))


@pytest.mark.slow
@pytest.mark.parametrize('outside', roi.OUTSIDE)
def test_gradients_agree_with_differences(outside):
  boxes = np.array([[0.3, 0.7, 3.1, 4.4], [-1.2, 2.2, 2.9, 7.3], [1.61, 1.13, 1.83, 1.27]])
  with jax.enable_x64(True):
    check_grads(jax.jit(lambda images, boxes: roi.precise_pool(images, boxes, (2, 3), outside)),
                (jnp.asarray(maps(3)), jnp.asarray(boxes)), order=1, modes=('rev',), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('cells', [1, 2, 3, (4, 5), (7, 3)])
def test_adaptive_bins_are_those_of_pytorch(cells):
  images = maps(2)
  rows, columns = (cells, cells) if isinstance(cells, int) else cells
  expected = np.empty((2, rows, columns, CHANNELS))
  for i, j in itertools.product(range(rows), range(columns)):
    top, bottom = int(np.floor(i * HEIGHT / rows)), int(np.ceil((i + 1) * HEIGHT / rows))
    left, right = int(np.floor(j * WIDTH / columns)), int(np.ceil((j + 1) * WIDTH / columns))
    expected[:, i, j] = images[:, top:bottom, left:right].mean(axis=(1, 2))
  pooled = bins(jnp.float32(images), size=cells)
  assert pooled.dtype == jnp.float32
  np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_low_precision_maps_are_summed_in_float32():
  images = jnp.asarray(maps(1, 32, 32), jnp.bfloat16)
  boxes = jnp.float32([[0.3, 1.7, 30.3, 31.1]])
  for run in (lambda images: pool(images, boxes, size=1), lambda images: bins(images, size=1)):
    assert run(images).dtype == jnp.float32
    np.testing.assert_allclose(run(images), run(images.astype(jnp.float32)), atol=1e-6)


# ---- Two crops of an image ----------------------------------------------------------------------


def test_boxes_under_flips_by_hand():
  crop = jnp.float32([[[0, 0, 0.5, 0.8], [0.25, 0.4, 1, 1]]] * 4)
  flip = jnp.array([[False, False], [True, False], [False, True], [True, True]])
  first, second = [0.5, 0.5, 1, 1], [0, 0, 1 / 3, 2 / 3]
  mirrored, second_mirrored = [0.5, 0, 1, 0.5], [0, 1 / 3, 1 / 3, 1]
  expected = [[first, second], [mirrored, second], [first, second_mirrored], [mirrored, second_mirrored]]
  np.testing.assert_allclose(overlap(crop, flip), expected, atol=1e-6)


@pytest.mark.parametrize('crop', [np.zeros((1, 2, 4)), [[[0, 0, 0.2, 0.2], [0.5, 0.5, 1, 1]]]])
def test_boxes_of_crops_that_share_nothing_are_empty_and_finite(crop):
  boxes = overlap(jnp.float32(crop), jnp.array([[False, True]]))
  assert np.isfinite(boxes).all()
  np.testing.assert_allclose(boxes[..., :2], boxes[..., 2:], atol=1e-6)


def views_of_coordinates(crop, flip, side):
  """Feature maps [B, 2, side, side, 2] of an image whose two features are its own y and x."""
  at = (np.arange(side) + 0.5) / side
  views = np.empty((*flip.shape, side, side, 2))
  for index in np.ndindex(flip.shape):
    y0, x0, y1, x1 = crop[index]
    x = at[::-1] if flip[index] else at
    views[index] = np.stack(np.meshgrid(y0 + (y1 - y0) * at, x0 + (x1 - x0) * x, indexing='ij'), axis=-1)
  return views


def test_cells_of_two_views_are_the_same_part_of_the_image():
  rng, count, side, cells = np.random.default_rng(0), 16, 16, 5
  crop = np.concatenate([rng.uniform(0, 0.35, (count, 2, 2)), rng.uniform(0.75, 1, (count, 2, 2))], axis=-1)
  flip = np.array(list(itertools.product([False, True], repeat=2)) * 4)
  views = views_of_coordinates(crop, flip, side).reshape(-1, side, side, 2)

  @jax.jit
  def run(views, crop, flip):
    pooled = roi.precise_pool(views, side * roi.overlap_boxes(crop, flip).reshape(-1, 4), cells)
    matched = roi.unflip_cells(pooled, flip.reshape(-1))
    return [grid.reshape(count, 2, cells, cells, 2) for grid in (pooled, matched)]
  pooled, matched = map(np.asarray, run(jnp.float32(views), jnp.float32(crop), jnp.asarray(flip)))

  # What the border's half a feature adds, where the surface is no ramp any more, is in the outer cells.
  inner = matched[:, :, 1:-1, 1:-1]
  np.testing.assert_allclose(inner[:, 0], inner[:, 1], atol=1e-5)
  start, stop = crop[..., :2].max(axis=1), crop[..., 2:].min(axis=1)
  middles = start[:, None] + (np.arange(cells)[:, None] + 0.5) / cells * (stop - start)[:, None]
  y, x = np.broadcast_arrays(middles[:, :, None, 0], middles[:, None, :, 1])
  for view in range(2):
    np.testing.assert_allclose(inner[:, view], np.stack([y, x], -1)[:, 1:-1, 1:-1], atol=1e-5)
    np.testing.assert_allclose(matched[:, view], np.stack([y, x], -1), atol=0.01)

  apart = np.abs(pooled[:, 0] - pooled[:, 1]).max(axis=(1, 2, 3))
  np.testing.assert_array_equal(apart > 0.1, flip[:, 0] != flip[:, 1])
