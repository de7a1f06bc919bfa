"""Sources and features held in memory, for the tests of this folder."""
import io

import jax.numpy as jnp
import numpy as np
from PIL import Image

from conic_jax.evals.features import Features
from conic_jax.hardware.mesh import to_global
from conic_jax.views import CentralView, evaluated

SPEC = evaluated({'size': 8})
VIEW = CentralView(SPEC, resize=8)


class ArraySource:
  """Images uint8 [N, H, W, 3] as PNG, with labels; those of the ids `broken` cannot be decoded."""

  def __init__(self, images, labels, num_classes=None, broken=()):
    self._images, self._labels, self._broken = images, np.asarray(labels, np.int32), set(broken)
    self.num_images = len(images)
    self.num_classes = int(self._labels.max()) + 1 if num_classes is None else num_classes
    self.class_names = tuple(map(str, range(self.num_classes)))

  def read(self, ids):
    return [self._encode(id) for id in ids], self._labels[ids]

  def labels(self):
    return self._labels

  def name(self, id):
    return str(id)

  def _encode(self, id):
    encoded = io.BytesIO()
    Image.fromarray(self._images[id]).save(encoded, 'PNG')
    return b'broken' if id in self._broken else encoded.getvalue()


def mean_colour(variables, images):
  """An encoder: the mean of each channel, times `variables['scale']` if there is one."""
  return images.mean((1, 2)) * variables.get('scale', jnp.float32(1))


def coloured(labels, seed=0):
  """Noisy images of one colour a class, uint8 [N, 8, 8, 3]."""
  colours = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [200, 200, 30]])
  noise = np.random.default_rng(seed).integers(-30, 30, (len(labels), 8, 8, 3))
  return np.clip(colours[np.asarray(labels)][:, None, None] + noise, 0, 255).astype(np.uint8)


def on_mesh(mesh, features, labels, extra=0, ids=None):
  """`Features` of these rows, filled up with invalid rows of large features, `extra` or more."""
  count = len(features)
  ids = np.arange(count) if ids is None else ids
  padding = extra + -(count + extra) % mesh.size
  def pad(rows, value):
    return np.concatenate([rows, np.full((padding, *rows.shape[1:]), value, rows.dtype)])
  return Features(*to_global((
      pad(np.asarray(features, np.float32), 9.), pad(np.asarray(labels, np.int32), 0),
      pad(ids.astype(np.int32), -1), pad(np.ones(count, bool), False)), mesh))
