"""From pairs of image and mask to batches: random crops to train on, whole images to test on."""
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image

from conic_jax.data import parallel
from conic_jax.data.crops import philox
from conic_jax.data.masks import VOID, Pairs, read_pairs
from conic_jax.data.sampler import Sampler
from conic_jax.errors import UserError

_READERS = 8  # Batches read and decoded at the same time, where there are as many cores.


def train_batches(pairs: Pairs, table: np.ndarray, *, crop: tuple[int, int], scale: tuple[float, float],
                  short_side: int, fill: tuple[int, int, int], batch_size: int, seed: int, steps: int,
                  rows: np.ndarray, first_step: int = 0) -> Iterator[dict]:
  """Batches of random crops at a random scale, half of them mirrored.

  Where a crop lies depends on (seed, epoch, id) alone, whatever the batch or the host.

  Args:
    pairs: the images and masks.
    table: of `masks.label_table`.
    crop: height and width in pixels; a smaller image is padded on the right and below.
    scale: smallest and largest factor on the size of the images.
    short_side: length in pixels that an image's short side has before; 0 for its own.
    fill: colour of the padding, which is void in the mask.
    batch_size: images of the global batch.
    seed: in [0, 2^32).
    steps: batches up to the last; first_step: the first of them that is read.
    rows: positions of the global batch that this process reads, [b].

  Yields:
    'image' uint8 [b, *crop, 3], 'mask' uint8 [b, *crop] of classes and `masks.VOID`, 'id' int32 [b],
    'valid' bool [b]; a pair that cannot be decoded is padding alone.

  Raises:
    UserError: where the pairs are fewer than one batch holds, or a mask does not suit.
  """
  if pairs.num_images < batch_size:
    raise UserError(f'There are {pairs.num_images} images with masks to train on, fewer than one batch: set '
                    f'config.segmentation.batch_size to at most {pairs.num_images}.')
  sampler = Sampler(pairs.num_images, batch_size, seed)

  def read(step):
    ids = sampler.batch_ids(step)[rows]
    found = read_pairs(pairs, ids, table)
    shapes = np.array([_shape(pair) for pair in found])
    epoch = step // sampler.steps_per_round
    boxes, sizes, flips = random_crops(shapes, ids, seed, epoch, crop, scale, short_side)
    batch = _empty(ids, crop, fill)
    batch['mask'] = np.full((len(ids), *crop), VOID, np.uint8)
    for i, pair in enumerate(found):
      if pair is not None:
        height, width = sizes[i]
        image, mask = _cut(pair[0], boxes[i], sizes[i]), _cut(pair[1], boxes[i], sizes[i])
        direction = -1 if flips[i] else 1
        batch['image'][i, :height, :width] = image[:, ::direction]
        batch['mask'][i, :height, :width] = mask[:, ::direction]
        batch['valid'][i] = True
    return batch

  return _ahead(read, range(first_step, steps))


def eval_batches(pairs: Pairs, table: np.ndarray, *, canvas: tuple[int, int], short_side: int,
                 fill: tuple[int, int, int], batch_size: int, rows: np.ndarray) -> Iterator[dict]:
  """Every pair once, in order of id, each image whole in the upper left corner of a canvas.

  Args:
    pairs, table, fill, batch_size, rows: as for `train_batches`.
    canvas: height and width in pixels.
    short_side: length in pixels that an image's short side is brought to; 0 for its own. An image that
      does not fit on the canvas is shrunk until it does.

  Yields:
    'image' uint8 [b, *canvas, 3], 'id' int32 [b] (-1 fills up the last batch), 'valid' bool [b], 'size' int32
    [b, 2] the height and width of the image on its canvas, and 'mask', a list of uint8 [h, w] at the masks'
    own sizes.
  """
  def read(step):
    ids = step * batch_size + np.asarray(rows)
    present = ids < pairs.num_images
    found: list = [None] * len(ids)
    for i, pair in zip(np.flatnonzero(present), read_pairs(pairs, ids[present], table), strict=True):
      found[i] = pair
    batch = _empty(np.where(present, ids, -1), canvas, fill)
    batch['size'] = _fitted(np.array([_shape(pair) for pair in found]), canvas, short_side)
    batch['mask'] = [np.zeros((0, 0), np.uint8) if pair is None else np.asarray(pair[1]) for pair in found]
    for i, pair in enumerate(found):
      if pair is not None:
        height, width = batch['size'][i]
        whole = (0, 0, *_shape(pair))
        batch['image'][i, :height, :width] = _cut(pair[0], whole, (height, width))
        batch['valid'][i] = True
    return batch

  return _ahead(read, range(-(-pairs.num_images // batch_size)))


def random_crops(shapes: np.ndarray, ids: np.ndarray, seed: int, epoch: int, crop: tuple[int, int],
                 scale: tuple[float, float], short_side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws a scale, a crop at that scale, and whether it is mirrored.

  Args:
    shapes: height and width in pixels, int [b, 2], at least 1.
    ids: int [b].
    seed, epoch: in [0, 2^32).
    crop, scale, short_side: as for `train_batches`.

  Returns:
    boxes: y0, x0, y1, x1 in pixels of the image itself, float64 [b, 4].
    sizes: height and width that the box is resized to, at most `crop`, int64 [b, 2].
    flips: bool [b].
  """
  counter = np.zeros((len(ids), 4), np.uint32)
  counter[:, 0] = ids
  drawn = philox(counter, (seed, epoch)) / 2.0 ** 32
  factor = _base_scale(shapes, short_side) * (scale[0] + (scale[1] - scale[0]) * drawn[:, :1])
  scaled = np.maximum(np.round(shapes * factor), 1).astype(np.int64)
  sizes = np.minimum(scaled, crop)
  start = np.floor(drawn[:, 1:3] * (scaled - sizes + 1))
  corners = np.concatenate([start, start + sizes], axis=1)
  boxes = np.minimum(corners * np.tile(shapes / scaled, 2), np.tile(shapes, 2))
  return boxes, sizes, drawn[:, 3] < 0.5


def _base_scale(shapes, short_side):
  return short_side / shapes.min(axis=1, keepdims=True) if short_side else np.ones((len(shapes), 1))


def _fitted(shapes, canvas, short_side):
  """Height and width of each image on the canvas, int32 [b, 2]."""
  fits = (np.array(canvas) / shapes).min(axis=1, keepdims=True)
  sizes = np.round(shapes * np.minimum(_base_scale(shapes, short_side), fits))
  return np.clip(sizes, 1, canvas).astype(np.int32)


def _shape(pair):
  return (1, 1) if pair is None else (pair[0].height, pair[0].width)


def _cut(picture, box, size):
  """The box (y0, x0, y1, x1) of an image, bilinear, or of a mask, nearest, as an array of `size`."""
  y0, x0, y1, x1 = (float(edge) for edge in box)
  nearest = picture.mode == 'L'
  how = PIL.Image.Resampling.NEAREST if nearest else PIL.Image.Resampling.BILINEAR
  height, width = size
  return np.asarray(picture.resize((int(width), int(height)), how, (x0, y0, x1, y1)))


def _empty(ids, size, fill):
  images = np.empty((len(ids), *size, 3), np.uint8)
  images[:] = fill
  return {'image': images, 'id': ids.astype(np.int32), 'valid': np.zeros(len(ids), bool)}


def _ahead(read: Callable[[int], dict], steps: range) -> Iterator[dict]:
  """`read(step)` for each of the steps, in order; some are read ahead in threads."""
  readers = min(_READERS, parallel.cores())
  with ThreadPoolExecutor(readers, thread_name_prefix='conic_jax-masks') as pool:
    waiting: deque = deque()
    upcoming = iter(steps)
    while True:
      for step in itertools.islice(upcoming, readers + 1 - len(waiting)):
        waiting.append(pool.submit(read, step))
      if not waiting:
        return
      yield waiting.popleft().result()
