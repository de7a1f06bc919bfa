"""Images in Parquet files: which columns are read, how often row groups are, and what is refused."""
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conic_jax.data import parquet
from conic_jax.data.parquet import Parquet
from conic_jax.errors import UserError


def image(id):
  return f'image {id}'.encode()


def write(path, group=4, metadata=None, **columns):
  path.parent.mkdir(parents=True, exist_ok=True)
  table = pa.table(columns)
  if metadata:
    about = json.dumps({'info': {'features': metadata}}).encode()
    table = table.replace_schema_metadata({b'huggingface': about})
  pq.write_table(table, path, row_group_size=group)
  return path


def plain(ids, **more):
  return {'image': [image(id) for id in ids], 'label': [id % 3 for id in ids], **more}


def nested(ids):
  return pa.array([{'bytes': image(id), 'path': f'{id}.jpg'} for id in ids],
                  pa.struct([('bytes', pa.binary()), ('path', pa.string())]))


@pytest.fixture
def folder(tmp_path):
  """Two files of eleven and six images in groups of four, as bytes and as structs."""
  write(tmp_path / 'set/data/train-00000-of-00002.parquet', **plain(range(11)))
  write(tmp_path / 'set/data/train-00001-of-00002.parquet', **plain(range(11, 17)))
  write(tmp_path / 'nested/train.parquet', image=nested(range(17)),
        label=[id % 3 for id in range(17)])
  return tmp_path / 'set'


def opened(location, tmp_path, split='', **options):
  return Parquet(str(location), split, str(tmp_path / 'cache'), **options)


@pytest.mark.parametrize(('location', 'split'), [
  ('set', 'train'), ('set/data', ''), ('set/data/train-0000{0..1}-of-00002.parquet', ''),
  ('nested', 'train')])
def test_every_image_has_one_id_in_the_order_of_the_rows(folder, tmp_path, location, split):
  source = opened(tmp_path / location, tmp_path, split)
  ids = np.random.default_rng(0).permutation(17)
  images, labels = source.read(ids)
  assert images == [image(id) for id in ids]
  np.testing.assert_array_equal(labels, ids % 3)
  assert labels.dtype == np.int32
  np.testing.assert_array_equal(source.labels(), np.arange(17) % 3)
  assert source.class_names == ('0', '1', '2')
  assert source.read(np.array([3, 3]))[0] == [image(3), image(3)]
  assert source.read(np.arange(0))[0] == []


def test_names_and_inventory(folder, tmp_path):
  source = opened(folder, tmp_path)
  assert source.name(12) == f'{folder}/data/train-00001-of-00002.parquet:1'
  sizes = [os.path.getsize(path) for path in sorted((folder / 'data').iterdir())]
  assert list(source.inventory()) == [
    ['2 Parquet files, image image', 17, 'images'],
    ['train-00000-of-00002.parquet with 11 images', sizes[0], 'bytes'],
    ['train-00001-of-00002.parquet with 6 images', sizes[1], 'bytes']]


def test_a_group_is_read_once_for_images_in_their_order(folder, tmp_path, monkeypatch):
  read = []
  read_group = Parquet._read_group
  monkeypatch.setattr(Parquet, '_read_group',
                      lambda self, group: read.append(group) or read_group(self, group))
  source = opened(folder, tmp_path)
  for start in range(0, 17, 3):
    source.read(np.arange(start, min(start + 3, 17)))
  assert read == [0, 1, 2, 3, 4]
  monkeypatch.setattr(parquet, '_KEPT', 1)
  source = opened(folder, tmp_path)
  source.read(np.arange(17)[::-1])
  assert sorted(read[5:]) == [0, 1, 2, 3, 4]
  assert len(source._groups._kept) == 1


def test_hugging_faces_features_choose_and_name(tmp_path):
  features = {'picture': {'_type': 'Image'}, 'coarse': {'names': ['a', 'b'], '_type': 'ClassLabel'}}
  write(tmp_path / 'a.parquet', picture=nested(range(4)), thumbnail=[b'small'] * 4,
        coarse=pa.array([1, 0, None, -1]), metadata=features)
  source = opened(tmp_path / 'a.parquet', tmp_path)
  assert source.class_names == ('a', 'b')
  np.testing.assert_array_equal(source.labels(), [1, 0, -1, -1])
  assert source.read(np.array([2]))[0] == [image(2)]
  assert opened(tmp_path / 'a.parquet', tmp_path, image='thumbnail').read(np.array([2]))[0] == [b'small']
  assert opened(tmp_path / 'a.parquet', tmp_path, label='none').num_classes == 0


@pytest.mark.parametrize('labels', [
  pa.array(['dog', None, 'cat', 'dog']), pa.array(['dog', None, 'cat', 'dog']).dictionary_encode(),
  pa.array(['dog', None, 'cat', 'dog'], pa.large_string())])
def test_labels_may_be_names(tmp_path, labels):
  write(tmp_path / 'a.parquet', group=3, image=[b'x'] * 4, label=labels)
  source = opened(tmp_path / 'a.parquet', tmp_path)
  assert source.class_names == ('cat', 'dog')
  np.testing.assert_array_equal(source.labels(), [1, -1, 0, 1])


def test_a_row_without_an_image_is_nothing(tmp_path):
  write(tmp_path / 'a.parquet', image=[{'bytes': b'x', 'path': 'p'}, {'bytes': None, 'path': 'q'}, None])
  source = opened(tmp_path / 'a.parquet', tmp_path)
  assert source.read(np.arange(3))[0] == [b'x', b'', b'']
  np.testing.assert_array_equal(source.labels(), [-1] * 3)


@pytest.mark.parametrize(('columns', 'options', 'told'), [
  ({'text': ['x'], 'n': [1]}, {}, r'has no image column, .*: its columns are text \(string\), n \(int64\)'),
  ({'front': [b'x'], 'back': [b'x']}, {}, r'has 2 columns that may be the image: set config\.data\.image'),
  ({'image': [b'x'], 'n': [1]}, {'image': 'n'}, r"config\.data\.image is 'n', which is no column of images"),
  ({'image': [b'x'], 'n': [1.5]}, {'label': 'n'},
   r"config\.data\.label is 'n', .*its columns are image \(binary\), " r'n \(double\)'),
  ({'image': [b'x'], 'label': [2_000_000]}, {}, 'has the label 2000000, and classes are counted from 0')])
def test_columns_that_are_not_certain_are_refused(tmp_path, columns, options, told):
  write(tmp_path / 'a.parquet', **columns)
  with pytest.raises(UserError, match=told):
    opened(tmp_path / 'a.parquet', tmp_path, **options)


def test_two_labels_by_hugging_face_are_not_certain(tmp_path):
  label = {'names': ['a'], '_type': 'ClassLabel'}
  write(tmp_path / 'a.parquet', image=[b'x'], fine=[0], coarse=[0], metadata={'fine': label, 'coarse': label})
  with pytest.raises(UserError, match='has 2 columns that may be the label'):
    opened(tmp_path / 'a.parquet', tmp_path)


@pytest.mark.parametrize(('columns', 'told'), [
  ({'image': [b'x'], 'label': ['dog']}, r"unlike types, 0 in .*a\.parquet and 'dog' in .*b\.parquet"),
  ({'image': [b'x']},
   r"b\.parquet has image 'image' and label '' where .*a\.parquet has 'image' and 'label'"),
  ({'picture': [b'x'], 'label': [0]}, r"b\.parquet has image 'picture'"),
  ({'text': ['x']}, r'b\.parquet has no image column')])
def test_files_that_differ_are_refused(tmp_path, columns, told):
  write(tmp_path / 'a.parquet', **plain(range(3)))
  write(tmp_path / 'b.parquet', **columns)
  with pytest.raises(UserError, match=told):
    opened(tmp_path, tmp_path)


def test_files_that_name_other_classes_are_refused(tmp_path):
  for file, names in (('a', ['x']), ('b', ['y'])):
    write(tmp_path / f'{file}.parquet', image=[b'x'], label=[0],
          metadata={'label': {'names': names, '_type': 'ClassLabel'}})
  with pytest.raises(UserError, match=r'b\.parquet names its classes otherwise than .*a\.parquet'):
    opened(tmp_path, tmp_path)


def test_a_damaged_file_is_told_at_opening_and_reads_as_nothing_later(folder, tmp_path):
  path = folder / 'data/train-00001-of-00002.parquet'
  source = opened(folder, tmp_path)
  content = path.read_bytes()
  path.write_bytes(content[:40])
  images, labels = source.read(np.arange(9, 14))
  assert images == [image(9), image(10), b'', b'', b'']
  np.testing.assert_array_equal(labels, [0, 1, 2, 0, 1])
  with pytest.raises(UserError, match=r'00001-of-00002\.parquet cannot be read as Parquet .*copy it again'):
    opened(folder, tmp_path)
  path.unlink()
  assert source.read(np.arange(11, 13))[0] == [b'', b'']
