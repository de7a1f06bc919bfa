import io

import numpy as np
import PIL.Image
import pytest

from conic_jax.data import photos


@pytest.fixture(scope='module')
def sources():
  return {split: photos.Photos(split) for split in ('train', 'test')}


@pytest.mark.slow
@pytest.mark.parametrize(('split', 'size'), [('train', 2560), ('test', 1960)])
def test_patches_are_balanced_and_stay_the_same(sources, split, size):
  source = sources[split]
  images, labels = source.read(np.arange(source.num_images))
  assert source.num_images == size
  assert source.num_classes == len(source.class_names) == 10
  np.testing.assert_array_equal(np.bincount(labels), [size // 10] * 10)
  assert {PIL.Image.open(io.BytesIO(image)).size for image in images[:20]} == {(48, 48)}
  assert len(set(images)) > 0.95 * size
  assert photos.Photos(split).read(np.arange(size))[0] == images
  assert source.name(13) == f'{source.class_names[3]}-{split}-1'


@pytest.mark.parametrize('size', [(256, 256), (384, 256), (385, 256), (256, 300)])
def test_no_column_is_in_train_and_in_test(size):
  columns = {split: {column for left, _ in photos.corners(size, split)
                     for column in range(left, left + photos.SIDE)} for split in photos.GRID}
  assert min(columns['test']) - max(columns['train']) > photos.MARGIN
  assert min(columns['train']) == 0
  assert max(columns['test']) == size[0] - 1
  for split in photos.GRID:
    tops = [top for _, top in photos.corners(size, split)]
    assert min(tops) == 0
    assert max(tops) == size[1] - photos.SIDE


def test_patches_are_the_pixels_of_their_photograph(sources):
  photograph = photos.photographs()['coffee']
  label = sources['test'].class_names.index('coffee')
  for number, (left, top) in list(enumerate(photos.corners(photograph.size, 'test')))[::13]:
    (image,), _ = sources['test'].read(np.array([number * 10 + label]))
    expected = photograph.crop((left, top, left + 48, top + 48))
    np.testing.assert_array_equal(PIL.Image.open(io.BytesIO(image)), expected)
