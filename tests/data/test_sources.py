import io
import shutil

import ml_collections
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from conic_jax.data import sources
from conic_jax.errors import UserError


def open_source(name, split, dir='', cache=''):
  data = ml_collections.ConfigDict({'name': name, 'dir': str(dir), 'cache': str(cache)})
  return sources.open_source(data, split)


def value(encoded):
  return np.asarray(PIL.Image.open(io.BytesIO(encoded)))[0, 0, 0]


SPLITS = pytest.mark.parametrize('split', [
    'train', 'test', 'train[30%:80%]', 'train[:5]+test[2:]', 'train[-4:]'])


@SPLITS
def test_tfrecord_ids_follow_the_shards(split, tfds_dir, tmp_path):
  config = tfds.ReadConfig(interleave_cycle_length=1, add_tfds_id=True, try_autocache=False)
  dataset = tfds.builder('tiny_plain', data_dir=tfds_dir).as_dataset(split=split,
                                                                     read_config=config)
  expected = [(example['image'][0, 0, 0], example['label'], example['tfds_id'].decode())
              for example in dataset.as_numpy_iterator()]
  source = open_source('tiny_plain', split, tfds_dir, tmp_path)
  assert source.num_images == len(expected)
  assert source.class_names == ('ant', 'bee', 'cat')
  assert source.num_classes == 3
  ids = np.random.default_rng(0).permutation(source.num_images)
  images, labels = source.read(ids)
  assert labels.dtype == np.int32
  assert expected == [got for _, got in sorted(zip(
      ids, zip(map(value, images), labels, [source.name(int(i)) for i in ids])))]


@SPLITS
def test_array_record_ids_follow_the_shards(split, tfds_dir):
  examples = tfds.builder('tiny_nested', data_dir=tfds_dir).as_data_source(split=split)
  source = open_source('tiny_nested', split, tfds_dir)
  assert source.num_images == len(examples)
  assert source.class_names == ()
  assert source.num_classes == 0
  ids = np.random.default_rng(0).permutation(source.num_images)
  images, labels = source.read(ids)
  assert list(map(value, images)) == [examples[int(i)]['scene']['picture'][0, 0, 0] for i in ids]
  np.testing.assert_array_equal(labels, np.full(len(ids), -1, np.int32))


@pytest.mark.parametrize(('name', 'split'), [('tiny_plain', 'train'), ('tiny_nested', 'train'),
                                             ('photos', 'test')])
def test_reading_nothing(name, split, tfds_dir, tmp_path):
  images, labels = open_source(name, split, tfds_dir, tmp_path).read(np.arange(0))
  assert list(images) == []
  assert labels.shape == (0,)


def test_train_and_test_make_the_whole(tfds_dir, tmp_path):
  source = open_source('tiny_plain', 'train+test', tfds_dir, tmp_path)
  images, _ = source.read(np.arange(source.num_images))
  assert sorted(map(value, images)) == list(range(29))


@pytest.mark.parametrize('name', ['tiny_plain', 'tiny_nested'])
def test_a_missing_file_is_told_at_opening_and_reads_as_nothing_later(name, tfds_dir, tmp_path):
  shutil.copytree(f'{tfds_dir}/{name}', tmp_path / name)
  source = open_source(name, 'train', tmp_path, tmp_path / 'cache')
  next((tmp_path / name).rglob(f'{name}-train*-00001-of-00003')).unlink()
  images, labels = source.read(np.arange(23))
  missing = ['-00001-of-00003' in source.name(i) for i in range(23)]
  assert 0 < sum(missing) < 23
  assert [image == b'' for image in images] == missing
  assert all(labels[missing] == -1)
  with pytest.raises(UserError, match='00001-of-00003 is missing'):
    open_source(name, 'train', tmp_path, tmp_path / 'cache')


@pytest.mark.parametrize(('name', 'split', 'words'), [
    ('tiny_plane', 'train', ['tiny_plane', "'folder'", "'photos'"]),
    ('cifar1o', 'train', ["did you mean 'cifar10'"]),
    ('cifar10', 'train', ['not prepared', 'tfds build cifar10 --data_dir']),
    ('imagenet2012', 'train', ['ILSVRC2012_img_train.tar', 'downloads/manual', '--manual_dir']),
    ('cifar10:9.9.9', 'train', ['9.9.9', 'config.data.name']),
    ('tiny_plain', 'validation', ["'validation'", 'train, test']),
    ('tiny_plain', 'train[:', ['train, test']),
    ('tiny_plain', 'train[50:]', ['train, test']),
    ('tiny_plain', 'train[:0]', ['no image']),
    ('tiny_text', 'train', ['no image feature', 'number']),
    ('photos', 'validation', ["'train' or 'test'"]),
    ('folder', 'train', ['cannot be listed', 'config.data.dir'])])
def test_errors_name_the_remedy(name, split, words, tfds_dir, tmp_path):
  with pytest.raises(UserError) as error:
    open_source(name, split, tfds_dir, tmp_path)
  for word in words:
    assert word in str(error.value)


def test_default_cache_is_the_users(monkeypatch, tfds_dir, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  open_source('tiny_plain', 'train', tfds_dir)
  assert len(list((tmp_path / 'conic_jax').glob('*/header.json'))) == 1
