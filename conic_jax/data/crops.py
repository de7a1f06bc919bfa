"""Crops and flips of views, as a pure function of (seed, epoch, image id, view)."""
import dataclasses

import numpy as np

from conic_jax.errors import UserError
from conic_jax.views import Views

_TRIES = 10
# Most draws of two crops until they overlap. If one draw in 20 does, one image in 170 never gets an overlap.
_PAIR_DRAWS, _LEAST_OVERLAPPING = 100, 1 / 20
_CHECKED_DRAWS = 32  # Per image.
_SMALLEST_OVERLAP = 3  # Pixels along a side, one for each of InsCon's cells.
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_WORD = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
  """Philox4x32-10: four random words for each counter.

  Args:
    counter: uint32 [..., 4].
    key: two 32-bit words.

  Returns:
    uint32 [..., 4].

  Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
  """
  c0, c1, c2, c3 = np.moveaxis(counter.astype(np.uint64), -1, 0)
  k0, k1 = (np.uint64(word) for word in key)
  for _ in range(10):
    first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
    c0, c1 = (second >> _32) ^ c1 ^ k0, second & _WORD
    c2, c3 = (first >> _32) ^ c3 ^ k1, first & _WORD
    k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
  return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def random_views(groups: tuple[Views, ...], shapes: np.ndarray, ids: np.ndarray, seed: int,
                 epoch: int) -> tuple[np.ndarray, np.ndarray]:
  """Draws the crop and flip of every view of every image.

  Views are numbered consecutively across groups. Each view is drawn independently, except for the two of a
  group with `overlap`: both are redrawn until they overlap; after 100 draws both get the same crop.

  Args:
    groups: the groups of views; V is the sum of their counts.
    shapes: height and width in pixels, int [b, 2], at least 1.
    ids: image ids, int [b], below 2^32.
    seed: seed of the run, in [0, 2^32).
    epoch: epoch number, in [0, 2^32).

  Returns:
    boxes: y, x, height and width in pixels, int32 [b, V, 4].
    flips: bool [b, V].
  """
  views = [group for group in groups for _ in range(group.count)]
  numbers = np.arange(len(views))
  uniform = _uniform(numbers, ids, seed, epoch)
  boxes = _random_boxes(views, uniform, shapes)
  for i, group in enumerate(groups):
    if group.overlap > 0:
      first = sum(before.count for before in groups[:i])
      pair = slice(first, first + 2)
      _redraw(boxes[:, pair], group, numbers[pair], shapes, np.asarray(ids), seed, epoch)
  return boxes, uniform[:, :, _TRIES, 0] < np.array([view.flip for view in views])


def overlaps(pairs: np.ndarray, least: float) -> np.ndarray:
  """Whether two boxes share at least one pixel, and at least `least` of the smaller one's area.

  Args:
    pairs: y, x, height and width in pixels, int32 [b, 2, 4].
    least: a share, up to 1.

  Returns:
    bool [b].
  """
  shared = _shared_sides(pairs)
  smaller = pairs[..., 2:].prod(axis=-1, dtype=np.int64).min(axis=1)
  return (shared > 0).all(axis=-1) & (shared.prod(axis=-1, dtype=np.int64) >= least * smaller)


def check_overlap(groups: tuple[Views, ...], shapes: np.ndarray) -> None:
  """Checks, before training, that the overlapping crops of the groups can be drawn.

  If fewer than one draw in 20 overlaps, more than one image in 170 would get the same crop twice.

  Args:
    groups: the groups of views.
    shapes: height and width in pixels of some of the images, int [n, 2]; n may be 0.

  Raises:
    UserError: if `overlap` is not a share from 0 to 1, a group does not have two views, crops with these
      settings almost never overlap, or most overlaps on an image are shorter than 3 pixels.
  """
  for group in groups:
    if not 0 <= group.overlap <= 1:
      raise UserError(f'config.views.overlap is {group.overlap}: it is a share, from 0 to 1.')
    if group.overlap == 0:
      continue
    if group.count != 2:
      raise UserError(f'config.views.count is {group.count}: views that overlap are 2 (config.views.overlap '
                      f'is {group.overlap}).')
    if len(shapes):
      _check_draws(group, np.repeat(shapes, _CHECKED_DRAWS, axis=0))


def central_boxes(shapes: np.ndarray, size: int, resize: int) -> np.ndarray:
  """The centre crop of `size` after resizing the short side to `resize`, in pixels of the original image.

  Args:
    shapes: height and width in pixels, int [b, 2], at least 1.
    size: side of the crop.
    resize: length of the short side; 0 or `size` gives the whole central square.

  Returns:
    y, x, height and width in pixels, int32 [b, 4].
  """
  short = shapes.min(axis=1)
  side = np.maximum(np.round(short * (size / (resize or size))), 1).astype(np.int64)
  side = np.minimum(side, short)[:, None]
  return np.concatenate([(shapes - side) // 2, side, side], axis=1).astype(np.int32)


def central_views(shapes: np.ndarray, size: int, resize: int) -> np.ndarray:
  """Where the centre crop of a resized image lies in the image, as torchvision and Transformers cut it.

  The short side becomes `resize` pixels and the long one ⌊resize · long / short⌋; the crop starts at a
  whole pixel of the resized image, so that it may start between two of the image.

  Args:
    shapes: height and width of each image, int [b, 2].
    size: side of the crop in pixels.
    resize: short side before the crop; 0 or less than `size` is `size`.

  Returns:
    y, x, height and width in pixels of the image, float64 [b, 4].
  """
  resized = np.maximum(max(size, resize) * shapes // shapes.min(axis=1, keepdims=True), 1)
  scale = shapes / resized
  return np.concatenate([(resized - size) // 2 * scale, size * scale], axis=1)


def surroundings(boxes: np.ndarray, shapes: np.ndarray, size: int) -> np.ndarray:
  """The whole pixels that a view of `size` takes part of, y, x, height and width, int64 [b, 4].

  Args:
    boxes: from `central_views`.
    shapes: height and width of each image, int [b, 2].
    size: side of the view in pixels.
  """
  reach = np.maximum(boxes[:, 2:] / size, 1)  # Of the kernel, which is wider where the image shrinks.
  start = np.maximum(np.floor(boxes[:, :2] - reach), 0)
  end = np.minimum(np.ceil(boxes[:, :2] + boxes[:, 2:] + reach), shapes)
  return np.concatenate([start, end - start], axis=1).astype(np.int64)


def fractions(boxes: np.ndarray, shapes: np.ndarray) -> np.ndarray:
  """Boxes as y0, x0, y1, x1 in fractions of the height and width, float32 [b, V, 4]."""
  corners = np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)
  return (corners / np.tile(shapes, 2)[:, None]).astype(np.float32)


def _check_draws(group, shapes):
  """`check_overlap` for one group; shapes: [n * _CHECKED_DRAWS, 2], consecutive for each image."""
  ids = np.arange(len(shapes))
  free, _ = random_views((dataclasses.replace(group, overlap=0.0),), shapes, ids, 0, 0)
  share = overlaps(free, group.overlap).mean()
  if share < _LEAST_OVERLAPPING:
    raise UserError(f'Two crops overlap enough in {share:.1%} of the draws: raise the smallest area of '
                    f'config.views.crop {tuple(group.crop)}, or lower config.views.overlap {group.overlap}.')
  boxes, _ = random_views((group,), shapes, ids, 0, 0)
  length = np.median(_shared_sides(boxes).min(axis=-1).reshape(-1, _CHECKED_DRAWS), axis=1)
  if (length < _SMALLEST_OVERLAP).any():
    height, width = shapes[::_CHECKED_DRAWS][length.argmin()]
    raise UserError(f'An image of {height}×{width} pixels is too small: most overlaps of its '
                    f'crops are under {_SMALLEST_OVERLAP} pixels long. Leave such images out, or raise the '
                    f'smallest area of config.views.crop {tuple(group.crop)}.')


def _shared_sides(pairs):
  """Height and width of the intersection of two boxes, 0 if empty, int [b, 2]."""
  start, size = pairs[..., :2], pairs[..., 2:]
  return np.maximum((start + size).min(axis=1) - start.max(axis=1), 0)


def _redraw(pairs, group, numbers, shapes, ids, seed, epoch):
  """Redraws, in place, the boxes [b, 2, 4] of a group that do not overlap enough."""
  apart = np.flatnonzero(~overlaps(pairs, group.overlap))
  for draw in range(1, _PAIR_DRAWS):
    if not len(apart):
      break
    uniform = _uniform(numbers, ids[apart], seed, epoch, draw)
    pairs[apart] = _random_boxes([group] * 2, uniform, shapes[apart])
    apart = apart[~overlaps(pairs[apart], group.overlap)]
  pairs[apart, 1] = pairs[apart, 0]


def _uniform(numbers, ids, seed, epoch, draw=0):
  """Uniform draws in [0, 1) for the views with these numbers, [b, V, tries + 1 for the flip, 4]."""
  counter = np.zeros((len(ids), len(numbers), _TRIES + 1, 4), np.uint32)
  counter[..., 0] = np.asarray(ids)[:, None, None]
  counter[..., 1] = numbers[:, None]
  counter[..., 2] = np.arange(_TRIES + 1)
  counter[..., 3] = draw
  return philox(counter, (seed, epoch)) / 2.0 ** 32


def _random_boxes(views, uniform, shapes):
  """The first of ten tries that fits, else the largest central box with an allowed aspect ratio.

  Follows torchvision's RandomResizedCrop. uniform: [b, V, at least tries, 4].
  """
  area = np.array([view.crop for view in views], np.float64)
  log_aspect = np.log(np.array([view.aspect for view in views], np.float64))
  uniform = uniform[:, :, :_TRIES]
  height, width = (shapes[:, i, None, None].astype(np.float64) for i in range(2))
  target = height * width * _between(area, uniform[..., 0])
  ratio = np.exp(_between(log_aspect, uniform[..., 1]))
  size = np.stack([np.round(np.sqrt(target / ratio)), np.round(np.sqrt(target * ratio))], axis=-1)
  room = shapes[:, None, None].astype(np.float64) - size
  fits = (size > 0).all(axis=-1) & (room >= 0).all(axis=-1)
  start = np.floor(uniform[..., 2:] * (room + 1))
  first = fits.argmax(axis=2)[..., None, None]
  drawn = np.take_along_axis(np.concatenate([start, size], axis=-1), first, axis=2)[:, :, 0]
  boxes = np.where(fits.any(axis=2)[..., None], drawn, _fallback_boxes(shapes, np.exp(log_aspect)))
  return boxes.astype(np.int32)


def _between(interval, uniform):
  low, high = interval[:, :1], interval[:, 1:]
  return low + (high - low) * uniform


def _fallback_boxes(shapes, aspect):
  height, width = shapes[:, :1].astype(np.float64), shapes[:, 1:].astype(np.float64)
  ratio = np.clip(width / height, aspect[:, 0], aspect[:, 1])
  size = np.stack([np.minimum(height, np.round(width / ratio)),
                   np.minimum(width, np.round(height * ratio))], axis=-1)
  size = np.maximum(size, 1)
  return np.concatenate([(shapes[:, None] - size) // 2, size], axis=-1)
