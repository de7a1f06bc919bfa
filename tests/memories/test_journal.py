"""Files of blocks: what comes back of whole, torn and damaged ones."""
import errno
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conic_jax.errors import UserError
from conic_jax.memories import journal

ENTRY = np.dtype([('place', '<i8'), ('value', '<f4', (2,))])
HEADER = 16
BEGIN = journal.BEGIN
EVERY_BYTE = settings(max_examples=150, deadline=None,
                      suppress_health_check=[HealthCheck.function_scoped_fixture])


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
  assert_blocks(journal.read(tmp_path / 'file', ENTRY).blocks, blocks)


def with_uncounted_end(path):
  """A file of two blocks as a crash leaves it that struck before the second was counted: its bytes."""
  file = journal.Journal(path)
  file.publish()
  file.append(entries(2, 0))
  state = path.read_bytes()[:BEGIN]
  file.append(entries(3, 9))
  file.close()
  return state + path.read_bytes()[BEGIN:]


@pytest.mark.parametrize('set_aside', [False, True], ids=['cut', 'set aside and not written'])
def test_a_torn_end_is_left_out_wherever_it_is_cut(tmp_path, set_aside):
  path = tmp_path / 'file'
  data = with_uncounted_end(path)
  first = BEGIN + HEADER + entries(2).nbytes
  assert len(data) == first + HEADER + entries(3).nbytes
  lengths = [first, *range(first + HEADER, len(data))] if set_aside else range(first + 1, len(data))
  for length in lengths:
    path.write_bytes(data[:length] + bytes(len(data) - length if set_aside else 0))
    assert_blocks(journal.read(path, ENTRY, torn=True).blocks, [entries(2, 0)])
    with pytest.raises(UserError, match=f'is damaged at byte {first}'):
      journal.read(path, ENTRY)
  path.write_bytes(data)
  assert_blocks(journal.read(path, ENTRY, torn=True).blocks, [entries(2, 0), entries(3, 9)])


@pytest.mark.parametrize('torn', [False, True])
def test_an_end_that_was_whole_once_is_missed_wherever_it_is_cut(tmp_path, torn):
  path = tmp_path / 'file'
  write(path, [entries(2, 0), entries(3, 9)])
  data = path.read_bytes()
  for length in range(len(data)):
    path.write_bytes(data[:length])
    with pytest.raises(UserError, match=r'file is (damaged at byte|cut short, with . of its 2 blocks)'):
      journal.read(path, ENTRY, torn)


@given(position=st.integers(0, BEGIN + 3 * HEADER + 9 * ENTRY.itemsize - 1), flip=st.integers(1, 255),
       torn=st.booleans())
@EVERY_BYTE
def test_damage_of_any_byte_is_told_or_harmless(tmp_path, position, flip, torn):
  """Harmless in one of the two states only."""
  path, blocks = tmp_path / 'file', [entries(2), entries(3), entries(4)]
  write(path, blocks)
  data = bytearray(path.read_bytes())
  data[position] ^= flip
  path.write_bytes(data)
  if position < BEGIN:
    assert_blocks(journal.read(path, ENTRY, torn).blocks, blocks)
  else:
    with pytest.raises(UserError, match='is damaged at byte'):
      journal.read(path, ENTRY, torn)


def test_two_damaged_states_are_told(tmp_path):
  path = tmp_path / 'file'
  write(path, [])
  path.write_bytes(bytes(BEGIN))
  with pytest.raises(UserError, match='file is damaged at byte 0: bring the folder back'):
    journal.read(path, ENTRY, torn=True)


@pytest.mark.parametrize('order', [(1, 0, 2), (0, 2, 1), (0, 0, 2), (0, 1, 1), (0, 2)])
def test_blocks_in_another_order_are_told(tmp_path, order):
  path, size = tmp_path / 'file', HEADER + entries(2).nbytes
  write(path, [entries(2, first) for first in range(3)])
  data = path.read_bytes()
  blocks = [data[BEGIN + index * size:BEGIN + (index + 1) * size] for index in range(3)]
  path.write_bytes(data[:BEGIN] + b''.join(blocks[index] for index in order))
  with pytest.raises(UserError, match='is damaged at byte'):
    journal.read(path, ENTRY, torn=True)


@pytest.mark.parametrize('other', ['process-0/journal-2', 'process-1/journal-1'])
def test_a_file_in_the_place_of_another_is_told(tmp_path, other):
  for name in ('process-0/journal-1', other):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write(tmp_path / name, [entries(2)])
  os.replace(tmp_path / 'process-0' / 'journal-1', tmp_path / other)
  with pytest.raises(UserError, match='is damaged at byte 0'):
    journal.read(tmp_path / other, ENTRY)


def test_a_follower_is_recorded_and_forgotten(tmp_path):
  path = tmp_path / 'file'
  file = journal.Journal(path)
  file.publish()
  file.append(entries(2))
  assert journal.read(path, ENTRY).follower == journal.NONE
  file.follow(7)
  file.close()
  assert journal.read(path, ENTRY).follower == 7
  for _ in range(2):
    journal.unfollow(path)
    assert journal.read(path, ENTRY).follower == journal.NONE
    assert_blocks(journal.read(path, ENTRY).blocks, [entries(2)])


OLD_ENTRY = np.dtype([('place', '<i8')])


def old_block(count):
  payload = np.arange(count, dtype='<i8').tobytes()
  header = struct.pack('<4sII', b'CnJ1', count, zlib.crc32(payload))
  return header + struct.pack('<I', zlib.crc32(header)) + payload


def test_files_of_version_1_are_read_where_they_may_be(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(old_block(3) + old_block(1) + old_block(2)[:-1])
  read = journal.read(path, ENTRY, torn=True, old=OLD_ENTRY)
  assert [block['place'].tolist() for block in read.blocks] == [[0, 1, 2], [0]]
  assert read.follower == journal.NONE
  with pytest.raises(UserError, match='is damaged at byte'):
    journal.read(path, ENTRY, old=OLD_ENTRY)
  with pytest.raises(UserError, match='is damaged at byte 0'):
    journal.read(path, ENTRY, torn=True)
  journal.unfollow(path)  # They name no follower.
  assert path.read_bytes()[:4] == b'CnJ1'
  path.write_bytes(b'')
  assert journal.read(path, ENTRY, old=OLD_ENTRY).blocks == []
  with pytest.raises(UserError, match='is damaged at byte 0'):
    journal.read(path, ENTRY, torn=True)


def test_a_block_without_room_leaves_no_trace(tmp_path, monkeypatch):
  file = journal.Journal(tmp_path / 'file')
  file.publish()
  file.append(entries(2))
  pwrite = os.pwrite

  def full(descriptor, data, offset):
    if offset > BEGIN + 60:
      raise OSError(errno.ENOSPC, 'No space left on device')
    return pwrite(descriptor, data[:7], offset)

  monkeypatch.setattr(os, 'pwrite', full)
  with pytest.raises(OSError, match='No space left'):
    file.append(entries(4, 50))
  monkeypatch.undo()
  assert_blocks(journal.read(tmp_path / 'file', ENTRY).blocks, [entries(2)])
  file.append(entries(1, 7))
  file.close()
  assert_blocks(journal.read(tmp_path / 'file', ENTRY).blocks, [entries(2), entries(1, 7)])


def test_a_file_has_its_name_from_publish_on(tmp_path):
  write(tmp_path / 'file', [entries(1)])
  new = journal.Journal(tmp_path / 'file')
  new.append(entries(5))
  assert_blocks(journal.read(tmp_path / 'file', ENTRY).blocks, [entries(1)])
  new.publish()
  new.close()
  assert_blocks(journal.read(tmp_path / 'file', ENTRY).blocks, [entries(5)])
  journal.Journal(tmp_path / 'file').close()
  assert [path.name for path in tmp_path.iterdir()] == ['file']
