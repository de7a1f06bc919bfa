"""Images of every kind, encoded, and a source of them, for the tests of this folder."""
import io

import numpy as np
import PIL.Image


def encode(image, form='PNG', **options) -> bytes:
  """Bytes of an array or a Pillow image in a format of Pillow."""
  image = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
  encoded = io.BytesIO()
  image.save(encoded, form, **options)
  return encoded.getvalue()


def smooth(height=40, width=56, seed=0) -> np.ndarray:
  """A colour image that JPEG keeps nearly as it is, uint8 [height, width, 3]."""
  phase = np.random.default_rng(seed).uniform(0, 6, 3)
  y, x = np.mgrid[:height, :width][..., None]
  return (127.5 + 100 * np.sin(0.05 * x + phase) * np.cos(0.04 * y + phase[::-1])).astype(np.uint8)


class FakeSource:
  """Encoded images held in memory."""

  def __init__(self, images, labels=None):
    self._images, self._labels = images, labels
    self.num_images = len(images)
    self.class_names = () if labels is None else tuple(map(str, range(max(labels) + 1)))
    self.num_classes = len(self.class_names)
    self.reads = 0

  def read(self, ids):
    self.reads += len(ids)
    labels = [-1] * len(ids) if self._labels is None else [self._labels[i] for i in ids]
    return [self._images[i] for i in ids], np.array(labels, np.int32)

  def name(self, id):
    return f'image-{id}'
