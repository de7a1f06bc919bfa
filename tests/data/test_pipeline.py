import io
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from samples import FakeSource, encode, smooth
from support import views_of

from conic_jax.data import crops, pipeline
from conic_jax.data.sampler import Sampler
from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes

GROUPS = (views_of(count=2, size=16), views_of(count=3, size=8, crop=(0.05, 0.3)))


def batches(source, batch_size=8, start_step=0, count=1, rows=None, seed=0, **window):
  rows = np.arange(batch_size) if rows is None else rows
  sampler = Sampler(source.num_images, batch_size, seed, **window)
  stream = pipeline.train_batches(source, GROUPS, sampler, rows=rows, start_step=start_step, threads=2)
  return list(itertools.islice(stream, count))


@pytest.fixture(scope='module')
def two_epochs(colour_source):
  """Its first ten batches of 8."""
  return batches(colour_source, 8, count=10)


def by_id(list_of_batches):
  """What each image was given: id -> (views of each group, crop, flip, label)."""
  return {int(batch['id'][i]): (*(group[i] for group in batch['views']), batch['crop'][i],
                                batch['flip'][i], batch['label'][i])
          for batch in list_of_batches for i in range(len(batch['id']))}


def assert_same(first, second):
  assert first.keys() == second.keys()
  for key in first:
    for one, other in zip(first[key], second[key], strict=True):
      np.testing.assert_array_equal(one, other)


def test_fields(two_epochs):
  batch = two_epochs[0]
  shapes = {'id': (8,), 'valid': (8,), 'crop': (8, 5, 4), 'flip': (8, 5), 'label': (8,)}
  dtypes = {'id': np.int32, 'valid': bool, 'crop': np.float32, 'flip': bool, 'label': np.int32}
  assert batch.keys() == {'views', *shapes}
  assert [(group.shape, group.dtype) for group in batch['views']] == [
      ((8, 2, 16, 16, 3), np.uint8), ((8, 3, 8, 8, 3), np.uint8)]
  assert {key: batch[key].shape for key in shapes} == shapes
  assert {key: batch[key].dtype for key in dtypes} == dtypes
  np.testing.assert_array_equal(batch['id'], Sampler(40, 8, seed=0).batch_ids(0))
  np.testing.assert_array_equal(batch['label'], batch['id'] % 4)
  assert batch['valid'].all()


def test_views_are_cut_where_crop_says():
  # Red grows with the row and green with the column, so a view's mean colour tells its centre.
  y, x = np.mgrid[:200, :240]
  ramp = np.stack([y, x, y * 0], axis=-1).astype(np.uint8)
  batch, = batches(FakeSource([encode(ramp)] * 8))
  crop = batch['crop']
  assert (crop[..., :2] < crop[..., 2:]).all()
  assert crop.min() >= 0
  assert crop.max() <= 1
  centre = (crop[..., :2] + crop[..., 2:]) / 2 * [200, 240] - 0.5
  means = np.concatenate([group.mean(axis=(2, 3)) for group in batch['views']], axis=1)
  np.testing.assert_allclose(means[..., :2], centre, atol=1.0)


def test_an_epoch_is_every_image_and_the_next_has_other_views(two_epochs):
  first, second = by_id(two_epochs[:5]), by_id(two_epochs[5:])
  assert first.keys() == second.keys() == set(range(40))
  assert not any(np.array_equal(first[i][2], second[i][2]) for i in range(40))


def test_an_image_has_other_views_in_every_window_that_holds_it(colour_source):
  """Windows of 16 images move on by 4: two batches of 8 each, and 12 images in common."""
  rounds = [by_id(batches(colour_source, 8, start, 2, window=16, stride=4)) for start in (0, 2)]
  common = rounds[0].keys() & rounds[1].keys()
  assert len(common) == 12
  assert not any(np.array_equal(rounds[0][i][2], rounds[1][i][2]) for i in common)


@pytest.mark.slow
@pytest.mark.parametrize('batch_size', [4, 10, 20])
def test_views_do_not_depend_on_the_batch(colour_source, two_epochs, batch_size):
  assert_same(by_id(two_epochs[5:]),
              by_id(batches(colour_source, batch_size, 40 // batch_size, 40 // batch_size)))


def test_views_depend_on_the_seed(colour_source):
  one, other = (by_id(batches(colour_source, 40, seed=seed)) for seed in (0, 1))
  assert not any(np.array_equal(one[i][2], other[i][2]) for i in range(40))


def test_resuming_is_skipping(colour_source, two_epochs):
  for one, other in zip(two_epochs[7:9], batches(colour_source, 8, 7, 2), strict=True):
    np.testing.assert_array_equal(one['id'], other['id'])
    assert_same(by_id([one]), by_id([other]))


@pytest.mark.slow
def test_two_processes_cover_the_batch(colour_source):
  whole, = batches(colour_source, 12, 2)
  parts = [batches(colour_source, 12, 2, rows=rows)[0] for rows in (np.arange(7), np.arange(7, 12))]
  for key in ('id', 'valid', 'crop', 'flip', 'label'):
    np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), whole[key])
  for i, group in enumerate(whole['views']):
    np.testing.assert_array_equal(np.concatenate([part['views'][i] for part in parts]), group)


def test_an_image_is_read_once_for_all_views():
  source = FakeSource([encode(smooth())] * 8)
  stream = pipeline.train_batches(source, GROUPS, Sampler(8, 8, seed=0), start_step=0, rows=np.arange(8),
                                  prefetch=1)
  for _ in range(20):
    next(stream)
  ahead = 20  # Batches that may be read before they are asked for.
  assert 20 * 8 <= source.reads <= (20 + ahead) * 8


@pytest.mark.slow
def test_undecodable_images_keep_their_place():
  images = [encode(smooth(seed=seed), 'JPEG') for seed in range(24)]
  broken = {3: b'', 7: images[7][:200], 8: b'words', 20: encode(smooth())[:-30]}
  source = FakeSource([broken.get(i, image) for i, image in enumerate(images)])
  for batch in batches(source, 12, 0, 4):
    np.testing.assert_array_equal(batch['valid'], ~np.isin(batch['id'], list(broken)))
    assert np.isfinite(batch['crop']).all()
    for group in batch['views']:
      np.testing.assert_array_equal(group.any(axis=(1, 2, 3, 4)), batch['valid'])
    assert set(batch['label']) == {-1}
  good, = batches(FakeSource(images), 24)
  bad, = batches(source, 24)
  kept = bad['valid']
  np.testing.assert_array_equal(bad['views'][0][kept], good['views'][0][kept])


@pytest.mark.parametrize('rows', [np.arange(16), np.arange(8, 16), np.array([0, 5, 9])])
def test_evaluation_sees_every_image_in_order(colour_source, rows):
  got = list(pipeline.eval_batches(colour_source, size=16, resize=20, batch_size=16, rows=rows))
  assert len(got) == 3
  for step, batch in enumerate(got):
    ids = step * 16 + rows
    np.testing.assert_array_equal(batch['id'], np.where(ids < 40, ids, -1))
    np.testing.assert_array_equal(batch['valid'], ids < 40)
    np.testing.assert_array_equal(batch['label'], np.where(ids < 40, ids % 4, -1))
    views, = batch['views']
    assert views.shape == (len(rows), 1, 16, 16, 3)
    assert views.dtype == np.uint8
    np.testing.assert_array_equal(views.any(axis=(1, 2, 3, 4)), ids < 40)


@pytest.mark.parametrize(('size', 'resize', 'box'), [
    (32, 0, (12, 0, 64, 64)), (32, 32, (12, 0, 64, 64)), (32, 64, (28, 16, 32, 32))])
def test_evaluation_cuts_the_centre(size, resize, box):
  y, x = np.mgrid[:88, :64]
  ramp = np.stack([y, x, y * 0], axis=-1).astype(np.uint8)
  batch, = pipeline.eval_batches(FakeSource([encode(ramp)]), size=size, resize=resize, batch_size=1,
                                 rows=np.arange(1))
  top, left, height, width = box
  np.testing.assert_allclose(batch['views'][0].mean(axis=(0, 1, 2, 3))[:2],
                             [top + (height - 1) / 2, left + (width - 1) / 2], atol=0.6)
  assert not batch['flip'].any()


@pytest.mark.slow
@pytest.mark.parametrize(('side', 'antialiased'), [(17, False), (31, False), (33, True), (60, True)])
def test_training_views_are_antialiased_where_they_shrink_by_more_than_two(side, antialiased):
  noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
  whole = (views_of(count=1, size=16, crop=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0),)
  source = FakeSource([encode(noise)] * 4)
  fields = {'start_step': 0, 'rows': np.arange(4)}
  wanted, other = (tf.image.resize(noise, (16, 16), antialias=choice)
                   for choice in (antialiased, not antialiased))
  for batch in (next(pipeline.train_batches(source, whole, Sampler(4, 4, seed=0), **fields)),
                next(pipeline.whole_pass_batches(source, whole, batch_size=4, seed=0, epoch=5, **fields))):
    np.testing.assert_allclose(batch['views'][0][0, 0], wanted, atol=0.51)
    assert np.abs(batch['views'][0][0, 0] - other).max() > 10


@pytest.mark.parametrize('side', [17, 20, 31])
def test_evaluation_is_antialiased_where_it_shrinks_at_all(side):
  noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
  batch, = pipeline.eval_batches(FakeSource([encode(noise)]), size=16, resize=16, batch_size=1,
                                 rows=np.arange(1))
  smooth = tf.image.resize(noise, (16, 16), antialias=True)
  np.testing.assert_allclose(batch['views'][0][0, 0], smooth, atol=0.51)
  plain = tf.image.resize(noise, (16, 16))
  assert np.abs(batch['views'][0][0, 0] - plain).max() > 10


@pytest.mark.parametrize(('total', 'failing', 'raises'), [
    (4000, 30, False), (4000, 41, True), (500, 9, False), (500, 10, True), (8, 3, False),
    (8, 4, True), (1, 1, True)])
def test_rejects(total, failing, raises):
  undecodable = pipeline.UndecodableImages(FakeSource([b''] * total))
  ids = np.arange(failing)
  batch = {'id': np.concatenate([ids[::-1], [-1, total]]),
           'valid': np.array([False] * (failing + 1) + [True])}
  undecodable.add(batch)
  undecodable.add(batch)
  assert undecodable.names() == [f'image-{i}' for i in ids]
  assert undecodable.report().startswith(f'{failing} images could not be decoded and were left out: image-0')
  assert 'image-20' not in undecodable.report()
  if raises:
    with pytest.raises(UserError, match=f'{failing} of {total} images.*image-0'):
      undecodable.check()
  else:
    undecodable.check()


@pytest.mark.parametrize(('size', 'resize'), [(32, 36), (32, 32), (32, 0), (40, 57), (24, 100), (90, 101)])
@pytest.mark.parametrize('form', ['PNG', 'JPEG'])
def test_evaluated_views_are_pillows_resized_and_cut(size, resize, form):
  """For every shape, odd or long, at every alignment of the crop."""
  noise = np.random.default_rng(0)
  shapes = [(64, 91), (91, 64), (57, 57), (120, 41), (100, 101), (33, 200), (256, 171), (300, 299)]
  images = [noise.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
  encoded = [encode(image, form, **({'quality': 95} if form == 'JPEG' else {})) for image in images]
  batch = next(pipeline.eval_batches(FakeSource(encoded), size=size, resize=resize, batch_size=len(images),
                                     rows=np.arange(len(images))))
  assert batch['valid'].all()
  for data, view, crop, (height, width) in zip(encoded, batch['views'][0][:, 0], batch['crop'][:, 0], shapes,
                                               strict=True):
    short, target = min(height, width), max(size, resize)
    new = [target * side // short for side in (height, width)]
    with PIL.Image.open(io.BytesIO(data)) as image:
      resized = image.convert('RGB').resize(new[::-1], PIL.Image.Resampling.BILINEAR)
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    expected = np.asarray(resized.crop((left, top, left + size, top + size)), int)
    # Pillow rounds between its two passes, and to eight bits of its kernel.
    assert np.abs(view - expected).max() <= (2 if form == 'PNG' else 5)
    assert np.abs(view - expected).mean() < 0.6
    sides = [top / new[0], left / new[1], (top + size) / new[0], (left + size) / new[1]]
    np.testing.assert_allclose(crop, sides, atol=1e-6)


@pytest.mark.slow
def test_batches_go_onto_a_mesh(colour_source, mesh):
  rows = meshes.process_rows(mesh, 8)
  batch, = batches(colour_source, 8, rows=rows)
  lifted = meshes.to_global(batch, mesh)
  np.testing.assert_array_equal(lifted['views'][1], batch['views'][1])


def test_crops_and_flips_come_from_their_function(colour_source):
  batch, = batches(colour_source, 40, 3)
  shapes = np.random.default_rng(0).integers(30, 70, (40, 2))[batch['id']]
  boxes, flips = crops.random_views(GROUPS, shapes, batch['id'], 0, 3)
  np.testing.assert_array_equal(batch['flip'], flips)
  np.testing.assert_array_equal(batch['crop'], crops.fractions(boxes, shapes))


LEFT = '''
import sys, time
import numpy as np
from samples import FakeSource, encode, smooth
from support import views_of
from conic_jax.data import pipeline

class Slow(FakeSource):
  def read(self, ids):
    time.sleep(1)
    return super().read(ids)

source = Slow([encode(smooth(seed=seed)) for seed in range(64)])
stream = pipeline.whole_pass_batches(
  source, (views_of(size=8),), batch_size=8, seed=0, epoch=0, start_step=0, rows=np.arange(8))
next(stream)
if sys.argv[1] == 'raise':
  raise RuntimeError('stopped here')
'''


@pytest.mark.slow
@pytest.mark.parametrize(('how', 'code', 'told'), [
  ('end', 0, []), ('raise', 1, ['RuntimeError: stopped here'])])
def test_a_process_ends_while_images_are_read(how, code, told):
  folder = Path(__file__).parent
  paths = os.pathsep.join(map(str, (folder, folder.parent, '.')))
  done = subprocess.run([sys.executable, '-c', LEFT, how], timeout=120, capture_output=True, text=True,
                        env={**os.environ, 'PYTHONPATH': paths})
  assert done.returncode == code, done.stderr
  assert done.stderr.splitlines()[-1:] == told
