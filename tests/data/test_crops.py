import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import FakeSource, encode, smooth
from support import views_of

from conic_jax.data import crops, pipeline
from conic_jax.errors import UserError


@pytest.mark.parametrize(('counter', 'key', 'expected'), [
    ([0, 0, 0, 0], (0, 0), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
    ([0xffffffff] * 4, (0xffffffff,) * 2, [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
    ([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], (0xa4093822, 0x299f31d0),
     [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1])])
def test_philox_gives_the_published_answers(counter, key, expected):
  np.testing.assert_array_equal(crops.philox(np.array(counter, np.uint32), key), expected)


def test_boxes_lie_inside_with_the_asked_area_and_aspect():
  views = views_of(count=2, crop=(0.2, 0.6), aspect=(0.8, 1.25), flip=0.3)
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
  whole = views_of(count=1, crop=(1.0, 1.0))
  boxes, _ = crops.random_views((whole,), np.array([shape]), np.array([5]), 0, 0)
  np.testing.assert_array_equal(boxes[0, 0], expected)


def test_a_view_depends_on_nothing_but_seed_epoch_id_and_index():
  large, small = views_of(count=2), views_of(count=3, crop=(0.05, 0.15), flip=0.2)
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


# ---- Crops that overlap -------------------------------------------------------------------------

LARGE, SMALL = views_of(count=2, crop=(0.08, 0.4), overlap=0.3), views_of(count=1, crop=(0.2, 0.5))
SHAPES = np.random.default_rng(0).integers(20, 300, (64, 2))


def shared(pairs):
  """Pixels that two boxes share, and those of the smaller one, by painting both, of boxes [b, 2, 4]."""
  counts = []
  for pair in pairs:
    painted = np.zeros((2, 300, 300), bool)
    for canvas, (y, x, height, width) in zip(painted, pair, strict=True):
      canvas[y:y + height, x:x + width] = True
    counts.append((painted.all(axis=0).sum(), painted.sum(axis=(1, 2)).min()))
  return np.array(counts).T


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 2**20),
       overlap=st.sampled_from([1e-6, 0.3, 0.9, 1.0]),
       crop=st.sampled_from([(0.02, 0.1), (0.08, 1.0), (0.5, 1.0)]))
def test_two_crops_overlap_as_asked(seed, epoch, overlap, crop):
  group = dataclasses.replace(LARGE, overlap=overlap, crop=crop)
  boxes, _ = crops.random_views((SMALL, group), SHAPES, np.arange(64), seed, epoch)
  both, smaller = shared(boxes[:, 1:])
  assert (both >= 1).all()
  assert (both >= overlap * smaller).all()
  assert (boxes[..., :2] >= 0).all()
  assert (boxes[..., :2] + boxes[..., 2:] <= SHAPES[:, None]).all()


def test_only_pairs_apart_are_drawn_anew_and_nothing_else():
  free = dataclasses.replace(LARGE, overlap=0.0)
  ids = np.arange(64)
  first, flips = crops.random_views((SMALL, free, SMALL), SHAPES, ids, 3, 1)
  boxes, same_flips = crops.random_views((SMALL, LARGE, SMALL), SHAPES, ids, 3, 1)
  both, smaller = shared(first[:, 1:3])
  kept = both >= LARGE.overlap * smaller
  assert 10 < kept.sum() < 54
  np.testing.assert_array_equal(flips, same_flips)
  np.testing.assert_array_equal(boxes[:, [0, 3]], first[:, [0, 3]])
  np.testing.assert_array_equal((boxes == first).all(axis=(1, 2)), kept)
  # The whole group is drawn anew; on a few pixels a box may fall where it was.
  assert (boxes != first)[~kept, 1:3].any(axis=-1).mean() > 0.95


def test_an_overlapping_pair_does_not_depend_on_the_batch():
  ids = np.arange(64) + 7
  boxes, _ = crops.random_views((SMALL, LARGE), SHAPES, ids, 1, 2)
  some = np.random.default_rng(1).permutation(64)[:20]
  fewer, _ = crops.random_views((SMALL, LARGE), SHAPES[some], ids[some], 1, 2)
  np.testing.assert_array_equal(fewer, boxes[some])


def test_two_crops_that_never_meet_become_one():
  tiny = dataclasses.replace(LARGE, crop=(1e-4, 1e-4), overlap=1.0)
  boxes, _ = crops.random_views((tiny,), np.full((3, 2), 300), np.arange(3), 0, 0)
  np.testing.assert_array_equal(boxes[:, 0], boxes[:, 1])


@pytest.mark.parametrize(('changes', 'shapes', 'message'), [
  ({'count': 3}, SHAPES, r'config\.views\.count is 3'),
  ({'overlap': 1.5}, SHAPES, r'config\.views\.overlap is 1\.5'),
  ({'overlap': -0.1}, SHAPES, r'config\.views\.overlap is -0\.1'),
  ({'crop': (0.01, 0.02)}, SHAPES, r'enough in \d\.\d% of the draws: .*config\.views\.crop \(0\.01, 0\.02\)'),
  ({'crop': (0.3, 0.3), 'overlap': 1.0}, np.full((8, 2), 300), r'config\.views\.overlap 1\.0'),
  ({}, np.vstack([SHAPES, [[2, 500]]]), 'image of 2×500 pixels is too small'),
])
def test_views_that_cannot_overlap_are_told_before_training(changes, shapes, message):
  with pytest.raises(UserError, match=message):
    crops.check_overlap((SMALL, dataclasses.replace(LARGE, **changes)), shapes)


@pytest.mark.parametrize('shapes', [SHAPES, np.array([[32, 32]]), np.empty((0, 2), int)])
def test_usual_views_can_overlap(shapes):
  usual = views_of(crop=(0.2, 1.0), overlap=1e-6)
  crops.check_overlap((usual, SMALL), shapes)
  crops.check_overlap((views_of(count=3),), shapes)


def test_the_sizes_of_a_sample_are_looked_at_where_views_overlap():
  images = [encode(smooth(2, 9) if i == 192 else smooth(40, 50)) if i % 7 else b'broken' for i in range(200)]
  source = FakeSource(images)
  pipeline.check_views(source, (SMALL,))
  assert source.reads == 0
  with pytest.raises(UserError, match='2×9 pixels'):
    pipeline.check_views(source, (SMALL, LARGE))
  assert 40 < source.reads <= 64
  pipeline.check_views(FakeSource(images[:190]), (LARGE,))
  pipeline.check_views(FakeSource([b'broken']), (LARGE,))
