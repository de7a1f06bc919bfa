"""A small labelled data set that needs no download: patches of photographs shipped with packages.

Each of ten colour photographs from scikit-image and scikit-learn, resized to a short side of 256, is
a class. Patches of 48×48 are cut on an even grid: training patches from the left two thirds, test
patches from the rest, with a gap of 8 columns. No pixel of a test patch, nor any pixel that
resizing blended into it, lies in a training patch.
"""
import io

import numpy as np
import PIL.Image

from conic_jax.errors import UserError

SIDE, SHORT_SIDE, MARGIN, TRAIN_SHARE = 48, 256, 8, 2 / 3
GRID = {'train': 16, 'test': 14}
_SKIMAGE = ('astronaut.png', 'chelsea.png', 'coffee.png', 'hubble_deep_field.jpg', 'ihc.png',
            'motorcycle_left.png', 'retina.jpg', 'rocket.jpg')
_SKLEARN = ('china.jpg', 'flower.jpg')


class Photos:
  """Source of the patches: 2,560 for training, 1,960 for testing; the photographs take turns.

  Args:
    split: 'train' or 'test'.

  Raises:
    UserError: if the split is unknown.
  """

  def __init__(self, split: str):
    if split not in GRID:
      raise UserError(f"The data set 'photos' has no split '{split}': use 'train' or 'test'.")
    self._split = split
    self.class_names = tuple(sorted(name.partition('.')[0] for name in _SKIMAGE + _SKLEARN))
    whole = photographs()
    patches = [[_png(photograph, corner) for corner in corners(photograph.size, split)]
               for photograph in (whole[name] for name in self.class_names)]
    self._images = [patch for one_of_each in zip(*patches, strict=True) for patch in one_of_each]
    self.num_images, self.num_classes = len(self._images), len(self.class_names)

  def read(self, ids: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Reads images; see `sources.Source`."""
    return [self._images[i] for i in ids], self.labels()[np.asarray(ids)]

  def labels(self) -> np.ndarray:
    """The labels of all images; see `sources.Source`."""
    return np.arange(self.num_images, dtype=np.int32) % self.num_classes

  def name(self, id: int) -> str:
    """Photograph, split and number of the patch."""
    number, label = divmod(id, self.num_classes)
    return f'{self.class_names[label]}-{self._split}-{number}'


def corners(size: tuple[int, int], split: str) -> list[tuple[int, int]]:
  """Left and top of each patch in a photograph of `size` (width, height)."""
  width, height = size
  border = int(width * TRAIN_SHARE)
  first, last = (0, border) if split == 'train' else (border + MARGIN, width)
  columns = np.linspace(first, last - SIDE, GRID[split]).astype(int)
  rows = np.linspace(0, height - SIDE, GRID[split]).astype(int)
  return [(int(left), int(top)) for top in rows for left in columns]


def photographs() -> dict[str, PIL.Image.Image]:
  """The ten photographs by name, with a short side of 256."""
  # Imported here: scikit-learn takes seconds, and every command that reads images imports this module.
  import skimage.data
  import sklearn.datasets
  images = {name: PIL.Image.open(f'{skimage.data.data_dir}/{name}').convert('RGB')
            for name in _SKIMAGE}
  images |= {name: PIL.Image.fromarray(sklearn.datasets.load_sample_image(name))
             for name in _SKLEARN}
  return {name.partition('.')[0]: _scale(image) for name, image in images.items()}


def _scale(image):
  factor = SHORT_SIDE / min(image.size)
  return image.resize([round(side * factor) for side in image.size], PIL.Image.Resampling.BILINEAR)


def _png(photograph, corner):
  left, top = corner
  encoded = io.BytesIO()
  patch = photograph.crop((left, top, left + SIDE, top + SIDE))
  patch.save(encoded, 'PNG', compress_level=1, icc_profile=None)
  return encoded.getvalue()
