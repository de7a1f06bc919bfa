"""Tables that are mapped into memory."""
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from conic_jax.data import mapped

STRINGS = ['', 'a', 'ü/猫', os.fsdecode(b'\xff.jpg'), '', 'x' * 300]


def build(writer):
  writer.add_strings(STRINGS[:2])
  writer.add_strings([])
  writer.add_strings(STRINGS[2:])
  writer.add('labels', [1, -1])
  writer.add('labels', np.arange(3))
  writer.add('records', np.array([(2 ** 40, 2 ** 32 - 1, -7)], mapped.RECORD))
  writer.add('groups', [])
  return {'noted': ['fact']}


def load(tmp_path, size=1, build=build):
  return mapped.load(str(tmp_path), 'name', {'files': [['path', size, 'tag']], 'kind': 'test'}, build)


@pytest.mark.parametrize('make', [load, lambda _: mapped.temporary(build),
                                  lambda _: mapped.temporary(build, 8)])
def test_what_is_written_is_read(tmp_path, make):
  table = make(tmp_path)
  assert [table.string(index) for index in range(6)] == STRINGS
  assert list(table.strings()) == list(table.strings(2)) == STRINGS
  np.testing.assert_array_equal(table.parts['labels'], [1, -1, 0, 1, 2])
  assert table.parts['records'].tolist() == [(2 ** 40, 2 ** 32 - 1, -7)]
  assert len(table.parts['groups']) == 0
  assert table.facts == {'noted': ['fact']}
  with pytest.raises(ValueError, match='read-only'):
    table.parts['labels'][0] = 3


def test_only_large_temporary_parts_are_in_files():
  parts = mapped.temporary(build, 20).parts
  assert isinstance(parts['text'].base.obj, mmap.mmap)
  assert isinstance(parts['labels'].base, bytes)


def test_a_table_of_other_files_is_made_again_and_who_has_the_old_one_reads_on(tmp_path):
  before = load(tmp_path)
  load(tmp_path, 1, lambda writer: pytest.fail('made again'))
  after = load(tmp_path, 2, lambda writer: writer.add_strings(['other']) or {})
  assert list(after.strings()) == ['other']
  assert list(before.strings()) == STRINGS
  assert len(os.listdir(tmp_path)) == 1


def test_many_make_one_at_the_same_time(tmp_path):
  start = threading.Barrier(8)
  def at_once(writer):
    start.wait()
    return build(writer)
  for size in (1, 2):  # First there is none, then one of other files.
    with ThreadPoolExecutor(8) as pool:
      for table in pool.map(load, [tmp_path] * 8, [size] * 8, [at_once] * 8):
        assert list(table.strings()) == STRINGS
    assert len(os.listdir(tmp_path)) == 1
    load(tmp_path, size, lambda writer: pytest.fail('made again'))


def test_a_failure_leaves_nothing(tmp_path):
  def fail(writer):
    writer.add('labels', [1])
    raise KeyError('x')
  with pytest.raises(KeyError):
    load(tmp_path, 1, fail)
  assert os.listdir(tmp_path) == []


def test_blocks():
  assert list(mapped.blocks(range(5), 2)) == [[0, 1], [2, 3], [4]]
  assert list(mapped.blocks([])) == []
