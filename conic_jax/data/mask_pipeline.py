"""From image-mask pairs to batches: random crops for training, whole images for testing."""
import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image

from conic_jax.data import parallel
from conic_jax.data.crops import philox
from conic_jax.data.masks import VOID, Pairs, read_pairs
from conic_jax.data.sampler import Sampler
from conic_jax.errors import UserError

_READERS = 8  # Batches read and decoded at the same time, given enough cores.


@dataclasses.dataclass(frozen=True)
class MaskCrops:
  """How random crops are drawn.

  Attributes:
    size: height and width in pixels; smaller images are padded on the right and at the bottom.
    scale: smallest and largest random scale factor.
    short_side: short side of an image in pixels before `scale`; 0 keeps its size.
    fill: colour of the padding, which is void in the mask.
  """
  size: tuple[int, int]
  scale: tuple[float, float]
  short_side: int
  fill: tuple[int, int, int]


def train_batches(pairs: Pairs, table: np.ndarray, crops: MaskCrops, *, batch_size: int, seed: int,
                  steps: int, rows: np.ndarray, first_step: int = 0) -> Generator[dict, None, None]:
  """Batches of random crops at a random scale, half of them mirrored.

  A crop depends only on (seed, epoch, id), not on the batch or the host.

  Args:
    pairs: the images and masks.
    table: from `masks.label_table`.
    crops: how the crops are drawn.
    batch_size: images in the global batch.
    seed: in [0, 2^32).
    steps: total number of batches; reading starts at `first_step`.
    rows: positions in the global batch that this process reads, [b].

  Yields:
    'image' uint8 [b, *size, 3], 'mask' uint8 [b, *size] of classes and `masks.VOID`, 'id' int32 [b],
    'valid' bool [b]; an undecodable pair is all padding.

  Raises:
    UserError: if there are fewer pairs than one batch holds, or a mask is invalid.
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
    boxes, sizes, flips = random_crops(shapes, ids, seed, epoch, crops)
    batch = _empty(ids, crops.size, crops.fill)
    batch['mask'] = np.full((len(ids), *crops.size), VOID, np.uint8)
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
                 fill: tuple[int, int, int], batch_size: int, rows: np.ndarray
                 ) -> Generator[dict, None, None]:
  """Every pair once, in order of id, each whole image in the upper left corner of a canvas.

  Args:
    pairs, table, batch_size, rows: as for `train_batches`.
    canvas: height and width in pixels.
    short_side: pixels to resize the short side to; 0 keeps the image's size. Images larger than the canvas
      are shrunk to fit.
    fill: colour of the padding.

  Yields:
    'image' uint8 [b, *canvas, 3], 'id' int32 [b] (-1 pads the last batch), 'valid' bool [b], 'size' int32
    [b, 2] the height and width of the image on its canvas, and 'mask', a list of uint8 [h, w] at the masks'
    original sizes.
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


def random_crops(shapes: np.ndarray, ids: np.ndarray, seed: int, epoch: int,
                 crops: MaskCrops) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws a scale, a crop at that scale, and a flip.

  Args:
    shapes: height and width in pixels, int [b, 2], at least 1.
    ids: int [b].
    seed, epoch: in [0, 2^32).
    crops: how the crops are drawn.

  Returns:
    boxes: y0, x0, y1, x1 in pixels of the original image, float64 [b, 4].
    sizes: height and width to resize the box to, at most `crops.size`, int64 [b, 2].
    flips: bool [b].
  """
  counter = np.zeros((len(ids), 4), np.uint32)
  counter[:, 0] = ids
  drawn = philox(counter, (seed, epoch)) / 2.0 ** 32
  smallest, largest = crops.scale
  factor = _base_scale(shapes, crops.short_side) * (smallest + (largest - smallest) * drawn[:, :1])
  scaled = np.maximum(np.round(shapes * factor), 1).astype(np.int64)
  sizes = np.minimum(scaled, crops.size)
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
  """Crops the box (y0, x0, y1, x1) and resizes it to `size`: images bilinearly, masks by nearest pixels."""
  y0, x0, y1, x1 = (float(edge) for edge in box)
  nearest = picture.mode == 'L'
  how = PIL.Image.Resampling.NEAREST if nearest else PIL.Image.Resampling.BILINEAR
  height, width = size
  return np.asarray(picture.resize((int(width), int(height)), how, (x0, y0, x1, y1)))


def _empty(ids, size, fill):
  images = np.empty((len(ids), *size, 3), np.uint8)
  images[:] = fill
  return {'image': images, 'id': ids.astype(np.int32), 'valid': np.zeros(len(ids), bool)}


def _ahead(read: Callable[[int], dict], steps: range) -> Generator[dict, None, None]:
  """Yields `read(step)` for each step, in order; threads read ahead."""
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
