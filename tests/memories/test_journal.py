"""Files of blocks: what comes back of whole, torn and damaged ones."""
import errno
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conic_jax.errors import UserError
from conic_jax.memories import journal

ENTRY = np.dtype([('place', '<i8'), ('value', '<f4', (2,))])
HEADER = 16


def entries(count, first=0):
  block = np.empty(count, ENTRY)
  block['place'] = np.arange(first, first + count)
  block['value'] = first + 0.5
  return block


def write(path, blocks):
  file = journal.Journal(path)
  file.publish()
  for block in blocks:
    file.append(block)
  file.close()


def assert_blocks(actual, expected):
  assert len(actual) == len(expected)
  for ours, theirs in zip(actual, expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('counts', [(), (1,), (3, 0, 2), (0,)])
def test_blocks_come_back_in_their_order(tmp_path, counts):
  blocks = [entries(count, first) for first, count in enumerate(counts)]
  write(tmp_path / 'file', blocks)
  assert_blocks(journal.read(tmp_path / 'file', ENTRY), blocks)


@pytest.mark.parametrize('set_aside', [False, True], ids=['cut', 'set aside and not written'])
def test_a_torn_end_is_left_out_wherever_it_is_cut(tmp_path, set_aside):
  blocks, path = [entries(2, 0), entries(3, 9)], tmp_path / 'file'
  write(path, blocks)
  data = path.read_bytes()
  first = HEADER + blocks[0].nbytes
  assert len(data) == first + HEADER + blocks[1].nbytes
  lengths = [first, *range(first + HEADER, len(data))] if set_aside else range(first + 1, len(data))
  for length in lengths:
    path.write_bytes(data[:length] + bytes(len(data) - length if set_aside else 0))
    assert_blocks(journal.read(path, ENTRY, torn=True), blocks[:1])
    with pytest.raises(UserError, match=f'is damaged at byte {first}'):
      journal.read(path, ENTRY)


@given(position=st.integers(0, 2 * HEADER + 5 * ENTRY.itemsize - 1), flip=st.integers(1, 255))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_before_the_last_block_is_told(tmp_path, position, flip):
  path = tmp_path / 'file'
  write(path, [entries(2), entries(3), entries(4)])
  data = bytearray(path.read_bytes())
  data[position] ^= flip
  path.write_bytes(data)
  with pytest.raises(UserError, match='is damaged at byte'):
    journal.read(path, ENTRY, torn=True)


def test_a_block_without_room_leaves_no_trace(tmp_path, monkeypatch):
  file = journal.Journal(tmp_path / 'file')
  file.publish()
  file.append(entries(2))
  pwrite = os.pwrite

  def full(descriptor, data, offset):
    if offset > 60:
      raise OSError(errno.ENOSPC, 'No space left on device')
    return pwrite(descriptor, data[:7], offset)

  monkeypatch.setattr(os, 'pwrite', full)
  with pytest.raises(OSError, match='No space left'):
    file.append(entries(4, 50))
  monkeypatch.undo()
  assert_blocks(journal.read(tmp_path / 'file', ENTRY), [entries(2)])
  file.append(entries(1, 7))
  file.close()
  assert_blocks(journal.read(tmp_path / 'file', ENTRY), [entries(2), entries(1, 7)])


def test_a_file_has_its_name_from_publish_on(tmp_path):
  write(tmp_path / 'file', [entries(1)])
  new = journal.Journal(tmp_path / 'file')
  new.append(entries(5))
  assert_blocks(journal.read(tmp_path / 'file', ENTRY), [entries(1)])
  new.publish()
  new.close()
  assert_blocks(journal.read(tmp_path / 'file', ENTRY), [entries(5)])
  journal.Journal(tmp_path / 'file').close()
  assert [path.name for path in tmp_path.iterdir()] == ['file']
