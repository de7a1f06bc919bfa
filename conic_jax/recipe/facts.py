"""Facts about the images and the machine, from which the recipe chooses settings."""
import dataclasses

import jax
import numpy as np
import PIL.Image

from conic_jax.data import decode, parallel
from conic_jax.data.sources import Source
from conic_jax.errors import UserError

FEWEST_IMAGES = 64
_LOOKED_AT = 512
_THUMBNAIL = 8
# In 8-bit grey values: thumbnails that differ by less show the same image, re-encoded or resized.
_SAME = 2.0
_MANY_COPIES, _FEWEST_PAIRS = 0.5, 5
_WIDE, _MANY_WIDE = 3.0, 0.1


@dataclasses.dataclass(frozen=True)
class Facts:
  """The facts that the rules may depend on.

  Attributes:
    num_images: N.
    short_side: median length of the images' shorter side, in pixels.
    aspect: median ratio of the longer to the shorter side.
    labelled: whether there are labels and held-out images, so that accuracies can be measured.
    accelerator: whether the devices are GPUs or TPUs.
    devices: number of devices.
    seconds_per_image: training time per image, including reading and all its views; 0 if not measured.
    warnings: warnings about the images for the user.
  """
  num_images: int
  short_side: int
  aspect: float = 1.0
  labelled: bool = False
  accelerator: bool = False
  devices: int = 1
  seconds_per_image: float = 0.0
  warnings: tuple[str, ...] = ()


def plain_facts(num_images: int, accelerator: bool, devices: int) -> Facts:
  """Facts assumed for typical photographs, for a plan without images."""
  return Facts(num_images, short_side=256, accelerator=accelerator, devices=devices)


def look(source: Source, labelled: bool, seed: int) -> Facts:
  """Inspects the machine and up to 512 images of a source, drawn with the seed.

  Raises:
    UserError: if there are too few images to learn from, none of the inspected ones can be decoded, or all of
      them are copies of one.
  """
  count = source.num_images
  if count < FEWEST_IMAGES:
    raise UserError(f'There are {count} images: learning from them without labels takes at least '
                    f'{FEWEST_IMAGES}, and thousands to be of use. Add images, or use published weights '
                    '(configs/knn.py and configs/linear.py take a file as --config.encoder).')
  ids = np.random.default_rng(seed).permutation(count)[:_LOOKED_AT]
  encoded, _ = source.read(ids)
  seen = [image for image in parallel.map_blocks(_glance, encoded) if image is not None]
  if not seen:
    raise UserError(f'None of the {len(ids)} images that were looked at can be decoded, '
                    f'{source.name(int(ids[0]))} for one: are they images, and whole?')
  sides = np.array([image.sides for image in seen])
  thumbnails = np.stack([image.thumbnail for image in seen])
  if len(set(encoded)) == 1:
    raise UserError(f'The {len(ids)} images that were looked at are copies of one: there is nothing to tell '
                    'apart. Is this the right folder?')
  short, long = sides.min(axis=1), sides.max(axis=1)
  return Facts(
    count, int(np.median(short)), float(np.median(long / short)), labelled=labelled,
    accelerator=jax.default_backend() != 'cpu', devices=jax.device_count(),
    warnings=tuple(filter(None, (copies_warning(thumbnails, count), _wide_warning(long / short)))))


def copies_warning(thumbnails: np.ndarray, num_images: int) -> str:
  """A warning if images look like copies of each other, else ''.

  If a share p of the pairs among n images drawn from N is alike, an image has about p (N − 1) copies.

  Args:
    thumbnails: float [n, pixels], in 8-bit grey values.
    num_images: N.
  """
  count = len(thumbnails)
  squares = (thumbnails ** 2).mean(axis=1)
  distances = squares[:, None] + squares[None] - 2 * (thumbnails @ thumbnails.T) / thumbnails.shape[1]
  alike = (distances < _SAME ** 2) & ~np.eye(count, dtype=bool)
  copies = alike.sum() / max(1, count * (count - 1)) * (num_images - 1)
  if alike.sum() < 2 * _FEWEST_PAIRS or copies < _MANY_COPIES:
    return ''
  return (f'Of {count} images that were looked at, {alike.any(axis=1).sum()} look like copies of others '
          f'among them; an image has about {copies:.1f} copies in the folder. To tell copies apart teaches '
          'nothing, and kNN among copies looks better than it is: leave one of each.')


def _wide_warning(ratios: np.ndarray) -> str:
  """A warning if only some images are long strips, since crops are chosen for the median; else ''."""
  share = float((ratios > _WIDE).mean())
  if not _MANY_WIDE <= share <= 1 - _MANY_WIDE:
    return ''
  seen = ('crops of these are mostly their middle' if np.median(ratios) <= _WIDE
          else 'crops suit them, and are small parts of the others')
  return (f'{share:.0%} of the images are more than {_WIDE:g} times as long as wide: {seen}. Cut them into '
          'squares to learn from all of them.')


@dataclasses.dataclass(frozen=True)
class _Image:
  """An image's height and width, and a grey thumbnail [64]."""
  sides: tuple[int, int]
  thumbnail: np.ndarray


def _glance(data: bytes) -> _Image | None:
  prepared, height, width = decode.prepare(data)
  image = decode.decode_prepared(prepared, height, width, least_side=4 * _THUMBNAIL)
  if image is None:
    return None
  small = PIL.Image.fromarray(image).convert('L').resize((_THUMBNAIL, _THUMBNAIL), PIL.Image.Resampling.BOX)
  return _Image((height, width), np.asarray(small, float).ravel())
