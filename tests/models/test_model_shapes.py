"""Models refuse shapes that they do not promise to take."""
import jax
import pytest
from support import refuses

from conic_jax.models import normalisation, resnet, roi

KEY = jax.random.key(0)


def norm(*arrays):
  return normalisation.BatchNorm().init(KEY, arrays[0], 'grouped', *arrays[1:])


def encode(images):
  return resnet.ResNet((1,), False, 0.125, 'cifar').init(KEY, images)


@pytest.mark.parametrize(('function', 'shapes'), [
  (norm, [(8, 4, 4, 3), (8, 1)]),
  (norm, [(8, 4, 4, 3), (8,), (4,)]),
  (encode, [(8, 16, 16, 1)]),
  (resnet.max_pool, [(16, 16, 3)]),
  (lambda *arrays: roi.precise_pool(*arrays, 2), [(8, 4, 4, 3), (1, 4)]),
  (lambda maps: roi.adaptive_pool(maps, 2), [(4, 4, 3)]),
  (roi.overlap_boxes, [(8, 3, 4), (8, 3)]),
  (roi.overlap_boxes, [(8, 2, 4), (8, 1)]),
  (roi.unflip_cells, [(8, 2, 2, 3), (1,)]),
])
def test_wrong_shapes(function, shapes):
  refuses(function, *shapes)
