"""Pooling part of a feature map into cells, and the overlap of two crops of an image.

Coordinates: feature j of a row is centred at j + ½, so a map [H, W] covers [0, H] × [0, W]; divide a position
in view pixels by the stride.
"""
import chex
import jax
import jax.numpy as jnp
import numpy as np

OUTSIDE = ('edge', 'zero')
# Minimum side of a cell, in features: the cells of an empty box then give the value at a point.
_SMALLEST_CELL = 1e-4
_PRECISION = jax.lax.Precision.HIGHEST

Size = int | tuple[int, int]


def precise_pool(maps: jax.Array, boxes: jax.Array, size: Size, outside: str = 'edge') -> jax.Array:
  """Precise RoI pooling: the exact mean of a map's bilinear surface over each cell of a box.

  pooled = ∬ f(y, x) dy dx / area of the cell,
  f(y, x) = Σᵢⱼ fᵢⱼ h(y − i − ½) h(x − j − ½), h(t) = max(0, 1 − |t|)

  The surface and its integral are separable: two small matrices per box, differentiable in the corners.

  Args:
    maps: [B, H, W, C], of any floating dtype.
    boxes: y0, x0, y1, x1 in features, float [B, 4]; may extend beyond the map or be empty.
    size: cells along both sides of a box, or along its height and width.
    outside: 'edge' extends the outermost features beyond their centres, so that cells at the border are
      not damped; 'zero' lets the surface fall to zero there, as in the paper.

  Returns:
    [B, rows, columns, C], at least float32.

  Raises:
    ValueError: if `outside` is unknown.

  Source: Jiang et al., Acquisition of Localization Confidence for Accurate Object Detection, ECCV 2018.
  """
  if outside not in OUTSIDE:
    raise ValueError(f'outside is {outside!r}; available: {", ".join(OUTSIDE)}.')
  chex.assert_rank(maps, 4)
  chex.assert_shape(boxes, (len(maps), 4))
  dtype = np.promote_types(maps.dtype, np.float32)
  cells = (size, size) if isinstance(size, int) else size
  rows, columns = (_weights(boxes[:, i].astype(dtype), boxes[:, i + 2].astype(dtype), cells[i],
                            maps.shape[i + 1], outside) for i in range(2))
  pooled = jnp.einsum('bih,bhwc->biwc', rows, maps.astype(dtype), precision=_PRECISION)
  return jnp.einsum('bjw,biwc->bijc', columns, pooled, precision=_PRECISION)


def adaptive_pool(maps: jax.Array, size: Size) -> jax.Array:
  """PyTorch's AdaptiveAvgPool2d: means over bins; bin i of a side runs from ⌊i·H/s⌋ to ⌈(i + 1)·H/s⌉.

  Args:
    maps: [B, H, W, C], of any floating dtype.
    size: bins along both sides, or along the height and width.

  Returns:
    [B, rows, columns, C], at least float32.
  """
  chex.assert_rank(maps, 4)
  dtype = np.promote_types(maps.dtype, np.float32)
  bins = (size, size) if isinstance(size, int) else size
  rows, columns = (jnp.asarray(_bins(bins[i], maps.shape[i + 1]), dtype) for i in range(2))
  pooled = jnp.einsum('ih,bhwc->biwc', rows, maps.astype(dtype), precision=_PRECISION)
  return jnp.einsum('jw,biwc->bijc', columns, pooled, precision=_PRECISION)


def overlap_boxes(crop: jax.Array, flip: jax.Array) -> jax.Array:
  """The overlap of two crops of an image, as a box in each of the two views.

  Args:
    crop: y0, x0, y1, x1 as fractions of the image, float32 [B, 2, 4].
    flip: which views are mirrored, bool [B, 2].

  Returns:
    y0, x0, y1, x1 in units of the view's side as the network sees it (after the flip), float32 [B, 2, 4];
    multiply by the side of the feature map. Empty if the crops do not overlap.
  """
  chex.assert_shape(crop, (None, 2, 4))
  chex.assert_shape(flip, crop.shape[:2])
  start = jnp.max(crop[..., :2], axis=1, keepdims=True)
  stop = jnp.maximum(jnp.min(crop[..., 2:], axis=1, keepdims=True), start)
  corner, side = crop[..., :2], crop[..., 2:] - crop[..., :2]
  side = jnp.where(side > 0, side, 1)  # For dummy crops that only carry shapes.
  (y0, x0), (y1, x1) = (jnp.moveaxis((edge - corner) / side, -1, 0) for edge in (start, stop))
  return jnp.stack([y0, jnp.where(flip, 1 - x1, x0), y1, jnp.where(flip, 1 - x0, x1)], axis=-1)


def unflip_cells(cells: jax.Array, flip: jax.Array) -> jax.Array:
  """Reorders cells as in the image: cell (i, j) of both views of a pair is then the same part of it.

  Args:
    cells: [B, rows, columns, C], from a box of `overlap_boxes`.
    flip: which views are mirrored, bool [B].
  """
  chex.assert_rank([cells, flip], [4, 1])
  chex.assert_equal_shape_prefix([cells, flip], 1)
  return jnp.where(flip[:, None, None, None], cells[:, :, ::-1], cells)


def _weights(start: jax.Array, stop: jax.Array, cells: int, length: int, outside: str) -> jax.Array:
  """Weight of each feature of a row in the mean over each cell of the boxes, [B, cells, length].

  A hat h(t − centre) has two slopes. Each contributes the share of the cell that it covers times its mean
  height there, which is its height at the midpoint. Positions are relative to the cell's centre, so that
  small cells do not lose precision.
  """
  side = ((stop - start) / cells)[:, None, None]
  number = jnp.arange(cells, dtype=start.dtype)[None, :, None]
  middle = start[:, None, None] + (number + 0.5) * side
  side = jnp.maximum(side, _SMALLEST_CELL)
  half = side / 2
  centre = jnp.arange(length, dtype=start.dtype)[None, None] + 0.5 - middle

  def covered(low, high):
    low, high = jnp.maximum(low, -half), jnp.minimum(high, half)
    return jnp.maximum(high - low, 0) / side, (low + high) / 2

  share, at = covered(centre - 1, centre)
  rising = share * (1 - centre + at)
  share, at = covered(centre, centre + 1)
  falling = share * (1 + centre - at)
  if outside == 'edge':
    before, _ = covered(-half, centre[..., :1])
    after, _ = covered(centre[..., -1:], half)
    rising = jnp.concatenate([before, rising[..., 1:]], axis=-1)
    falling = jnp.concatenate([falling[..., :-1], after], axis=-1)
  return rising + falling


def _bins(bins: int, length: int) -> np.ndarray:
  """Weight of each feature of a row in each bin, float64 [bins, length]."""
  weights = np.zeros((bins, length))
  for i in range(bins):
    first, last = i * length // bins, -(-(i + 1) * length // bins)
    weights[i, first:last] = 1 / (last - first)
  return weights
