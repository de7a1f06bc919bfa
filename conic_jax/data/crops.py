"""Where views are cut: boxes and flips as a pure function of (seed, epoch, image id, view)."""
import numpy as np

from conic_jax.views import Views

_TRIES = 10
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
  """Draws the crop and the flip of every view of every image.

  Views are numbered through the groups; one view's draws do not depend on the others.

  Args:
    groups: the groups of views; V is the sum of their counts.
    shapes: height and width in pixels, int [b, 2], at least 1.
    ids: ids of the images, int [b], below 2^32.
    seed: seed of the run, in [0, 2^32).
    epoch: number of the epoch, in [0, 2^32).

  Returns:
    boxes: y, x, height and width in pixels, int32 [b, V, 4].
    flips: bool [b, V].
  """
  views = [group for group in groups for _ in range(group.count)]
  counter = np.zeros((len(ids), len(views), _TRIES + 1, 4), np.uint32)
  counter[..., 0] = np.asarray(ids)[:, None, None]
  counter[..., 1] = np.arange(len(views))[:, None]
  counter[..., 2] = np.arange(_TRIES + 1)
  uniform = philox(counter, (seed, epoch)) / 2.0 ** 32
  columns = [(view.crop, view.aspect, view.flip) for view in views]
  area, aspect, flip = (np.asarray(column, np.float64) for column in zip(*columns, strict=True))
  boxes = _random_boxes(uniform[:, :, :_TRIES], shapes, area, np.log(aspect))
  return boxes, uniform[:, :, _TRIES, 0] < flip


def central_boxes(shapes: np.ndarray, size: int, resize: int) -> np.ndarray:
  """The centre crop of `size` after the short side is made `resize`, in pixels of the image itself.

  Args:
    shapes: height and width in pixels, int [b, 2], at least 1.
    size: side of the crop.
    resize: length of the short side; 0 or `size` for the whole central square.

  Returns:
    y, x, height and width in pixels, int32 [b, 4].
  """
  short = shapes.min(axis=1)
  side = np.maximum(np.round(short * (size / (resize or size))), 1).astype(np.int64)
  side = np.minimum(side, short)[:, None]
  return np.concatenate([(shapes - side) // 2, side, side], axis=1).astype(np.int32)


def fractions(boxes: np.ndarray, shapes: np.ndarray) -> np.ndarray:
  """Boxes as y0, x0, y1, x1 in fractions of the height and width, float32 [b, V, 4]."""
  corners = np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)
  return (corners / np.tile(shapes, 2)[:, None]).astype(np.float32)


def _random_boxes(uniform, shapes, area, log_aspect):
  """The first of ten tries that fits, else the largest central box of an allowed aspect.

  The rule of torchvision's RandomResizedCrop. uniform: [b, V, tries, 4]; area, log_aspect: [V, 2].
  """
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
