import numpy as np
import pytest

from conic_jax.data import crops
from conic_jax.views import Views


@pytest.mark.parametrize(('counter', 'key', 'expected'), [
    ([0, 0, 0, 0], (0, 0), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
    ([0xffffffff] * 4, (0xffffffff,) * 2, [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
    ([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], (0xa4093822, 0x299f31d0),
     [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1])])
def test_philox_gives_the_published_answers(counter, key, expected):
  np.testing.assert_array_equal(crops.philox(np.array(counter, np.uint32), key), expected)


def test_boxes_lie_inside_with_the_asked_area_and_aspect():
  views = Views(count=2, crop=(0.2, 0.6), aspect=(0.8, 1.25), flip=0.3)
  shapes = np.tile([[300, 400]], (2000, 1))
  boxes, flips = crops.random_views((views,), shapes, np.arange(2000), 0, 0)
  assert boxes.shape == (2000, 2, 4)
  assert flips.shape == (2000, 2)
  y, x, height, width = np.moveaxis(boxes, -1, 0)
  assert y.min() == 0
  assert x.min() == 0
  assert (y + height).max() == 300
  assert (x + width).max() == 400
  area = height * width / (300 * 400)
  assert 0.195 < area.min() < 0.21
  assert 0.59 < area.max() < 0.605
  assert abs(area.mean() - 0.4) < 0.01
  log_aspect = np.log(width / height)
  assert abs(log_aspect.mean()) < 0.01
  assert np.abs(log_aspect).max() < np.log(1.25) + 0.02
  assert abs(flips.mean() - 0.3) < 0.03
  assert not (boxes[:, 0] == boxes[:, 1]).all(axis=-1).any()


@pytest.mark.parametrize(('shape', 'expected'), [
    ((100, 1000), [0, 433, 100, 133]), ((1000, 100), [433, 0, 133, 100]), ((1, 1), [0, 0, 1, 1])])
def test_no_try_fits_a_long_image(shape, expected):
  whole = Views(count=1, crop=(1.0, 1.0))
  boxes, _ = crops.random_views((whole,), np.array([shape]), np.array([5]), 0, 0)
  np.testing.assert_array_equal(boxes[0, 0], expected)


def test_a_view_depends_on_nothing_but_seed_epoch_id_and_index():
  large, small = Views(count=2), Views(count=3, crop=(0.05, 0.15), flip=0.2)
  shapes = np.array([[200, 300], [300, 200], [256, 256]])
  boxes, flips = crops.random_views((large, small), shapes, np.array([4, 9, 2]), 1, 2)
  alone, alone_flips = crops.random_views((large, small), shapes[1:2], np.array([9]), 1, 2)
  np.testing.assert_array_equal(alone[0], boxes[1])
  np.testing.assert_array_equal(alone_flips[0], flips[1])
  fewer, _ = crops.random_views((large,), shapes, np.array([4, 9, 2]), 1, 2)
  np.testing.assert_array_equal(fewer, boxes[:, :2])
  for seed, epoch in [(1, 3), (2, 2)]:
    other, _ = crops.random_views((large, small), shapes, np.array([4, 9, 2]), seed, epoch)
    assert not (other == boxes).all(axis=-1).any()


@pytest.mark.parametrize(('shape', 'size', 'resize', 'expected'), [
    ((500, 375), 224, 256, [86, 23, 328, 328]), ((32, 32), 32, 0, [0, 0, 32, 32]),
    ((40, 32), 32, 32, [4, 0, 32, 32]), ((30, 20), 64, 32, [5, 0, 20, 20])])
def test_central_boxes(shape, size, resize, expected):
  np.testing.assert_array_equal(crops.central_boxes(np.array([shape]), size, resize)[0], expected)


def test_fractions():
  got = crops.fractions(np.array([[[10, 20, 30, 40]]]), np.array([[100, 200]]))
  np.testing.assert_allclose(got, [[[0.1, 0.1, 0.4, 0.3]]], rtol=1e-6)
  assert got.dtype == np.float32
