"""Images that a program gives one by one: files, bytes, pictures of Pillow, or arrays."""
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from conic_jax.data import files
from conic_jax.errors import UserError


class GivenImages:
  """A `Source` of images in the order given, without labels.

  Args:
    images: paths (str or Path), encoded bytes, images of Pillow, or arrays as `encoded` takes them.

  Raises:
    UserError: if an array is no image.
  """
  num_classes, class_names = 0, ()

  def __init__(self, images: Sequence[Any]):
    self._images = [image if isinstance(image, (str, Path, bytes)) else encoded(image) for image in images]
    self.num_images = len(images)

  def read(self, ids: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Reads images; see `sources.Source`."""
    return [_bytes(self._images[i]) for i in ids], self.labels()[ids]

  def labels(self) -> np.ndarray:
    """-1 for all images."""
    return np.full(self.num_images, -1, np.int32)

  def name(self, id: int) -> str:
    """Path of the image, or its place among those given."""
    image = self._images[id]
    return str(image) if isinstance(image, (str, Path)) else f'image {id}'


def encoded(image: Any) -> bytes:
  """A picture as a PNG, with every value that it has.

  Args:
    image: an image of Pillow; or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8, or of floats
      from 0 to 1, which are rounded to 256 levels.

  Raises:
    UserError: if it is neither, or its values are outside.
  """
  if not isinstance(image, PIL.Image.Image):
    image = PIL.Image.fromarray(_levels(np.asarray(image)))
  elif image.mode not in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'):
    image = image.convert('RGB')
  png = io.BytesIO()
  image.save(png, 'PNG', compress_level=0)
  return png.getvalue()


def _levels(array: np.ndarray) -> np.ndarray:
  """The array as uint8, [H, W] or [H, W, 3 or 4]."""
  if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
    raise UserError(f'An image is an array [H, W, 3] or [H, W], not {list(array.shape)}: channels come last.')
  array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
  if array.dtype == np.uint8:
    return array
  if not np.issubdtype(array.dtype, np.floating):
    raise UserError(f'An image is an array of uint8, or of floats from 0 to 1, not of {array.dtype}.')
  if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
    raise UserError(f'Floats of an image are from 0 to 1, and these from {array.min():g} to {array.max():g}: '
                    'divide by 255, or give uint8.')
  return (array * 255 + 0.5).astype(np.uint8)


def _bytes(image: str | Path | bytes) -> bytes:
  if isinstance(image, bytes):
    return image
  try:
    return files.read(str(image))
  except OSError:
    return b''
