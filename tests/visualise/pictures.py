"""What the tests of pictures share."""
import numpy as np
from PIL import Image


def check_picture(path):
  """The picture shows something, and is small."""
  with Image.open(path) as picture:
    assert len(np.unique(np.asarray(picture.convert('L')))) > 2
  assert path.stat().st_size < 400_000


def smooth(*shape):
  """Photograph-like images uint8 [*shape, 96, 96, 3]."""
  y, x = np.mgrid[:96, :96][..., None] / 20
  phase = np.random.default_rng(0).uniform(0, 6, (*shape, 1, 1, 3))
  return (127 + 120 * np.sin(x + phase) * np.cos(y * phase / 3)).astype(np.uint8)
