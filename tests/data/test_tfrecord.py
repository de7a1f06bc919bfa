import os

import numpy as np
import pytest
import tensorflow as tf

from conic_jax.data import files, tfrecord
from conic_jax.errors import UserError


def write(path, records):
  with tf.io.TFRecordWriter(str(path)) as writer:
    for record in records:
      writer.write(record)
  return str(path)


@pytest.fixture
def paths(tmp_path):
  rng = np.random.default_rng(0)
  return [write(tmp_path / f'set-{i}', [f'{i}.{k} '.encode() * rng.integers(0, 50)
                                        for k in range(size)]) for i, size in enumerate([5, 0, 7])]


@pytest.mark.parametrize('remote', [False, True])
def test_index_agrees_with_tensorflow(paths, monkeypatch, remote):
  monkeypatch.setattr(files, 'is_remote', lambda path: remote)
  monkeypatch.setattr(tfrecord, '_BLOCK', 100)
  for path in paths:
    found = tfrecord.index_file((path, os.path.getsize(path)))
    got = [files.read(path, int(start), int(length)) for start, length, _ in found]
    assert got == [record.numpy() for record in tf.data.TFRecordDataset(path)]


def test_slices_follow_one_another(paths, tmp_path):
  slices = [(paths[0], 3, 2), (paths[2], 0, 4), (paths[0], 0, 1)]
  records = tfrecord.TFRecords(slices, str(tmp_path))
  first, last = (list(tf.data.TFRecordDataset(paths[i]).as_numpy_iterator()) for i in (0, 2))
  expected = first[3:5] + last[:4] + first[:1]
  assert len(records) == 7
  assert records.read(np.array([6, 0, 5, 1])) == [expected[i] for i in (6, 0, 5, 1)]


def test_index_is_kept_and_rebuilt_when_a_file_changes(paths, tmp_path, monkeypatch):
  cache = str(tmp_path / 'cache')
  built = []
  index_file = tfrecord.index_file
  monkeypatch.setattr(tfrecord, 'index_file',
                      lambda file: built.append(file[0]) or index_file(file))
  first = tfrecord.load_index(paths, cache)
  assert sorted(built) == sorted(paths)
  again = tfrecord.load_index(paths, cache)
  assert len(built) == 3
  for one, other in zip(first, again, strict=True):
    np.testing.assert_array_equal(one, other)
  write(paths[2], [b'changed'] * 2)
  _, counts = tfrecord.load_index(paths, cache)
  np.testing.assert_array_equal(counts, [5, 0, 2])
  assert len(built) == 6
  assert len(os.listdir(cache)) == 1


@pytest.mark.parametrize(('part', 'content'), [
  ('header.json', b'no JSON'), ('header.json', b'{}'), ('records', b''), ('records', b'seven b')])
def test_broken_cache_is_written_anew(paths, tmp_path, part, content):
  cache = tmp_path / 'cache'
  tfrecord.load_index(paths, str(cache))
  kept, = cache.iterdir()
  (kept / part).write_bytes(content)
  records, counts = tfrecord.load_index(paths, str(cache))
  assert len(records) == counts.sum() == 12
  assert list(cache.iterdir()) == [kept]
  assert records.nbytes == (kept / 'records').stat().st_size


def test_errors(paths, tmp_path):
  cache = str(tmp_path / 'cache')
  with pytest.raises(UserError, match=r'set-0 has 5 records where 6'):
    tfrecord.TFRecords([(paths[0], 0, 6)], cache)
  with pytest.raises(UserError, match='absent is missing'):
    tfrecord.load_index([paths[0] + 'absent'], cache)
  os.truncate(paths[0], os.path.getsize(paths[0]) - 2)
  with pytest.raises(UserError, match='set-0 is damaged'):
    tfrecord.load_index(paths, cache)
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'config\.data\.cache'):
    tfrecord.load_index(paths[2:], str(tmp_path / 'file' / 'cache'))


def test_a_file_that_goes_away_reads_as_nothing(paths, tmp_path):
  records = tfrecord.TFRecords([(paths[0], 0, 2), (paths[2], 0, 1)], str(tmp_path))
  expected = records.read(np.arange(3))
  os.remove(paths[0])
  assert records.read(np.arange(3)) == [b'', b'', expected[2]]
