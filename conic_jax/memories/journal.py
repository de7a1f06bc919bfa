"""Files of record blocks, to which a block is appended whole or not at all.

A file begins with two places for its state, of which the one with the higher number counts: one is whole
while the other is written. A state is: magic (4 bytes), number (4, little endian), blocks appended (4), step
of the journal that follows, or -1 (8), checksum (4). A block is: magic (4), number of entries (4), checksum
of the entries (4), checksum of these twelve bytes (4), entries.

Checksums are CRC-32. They start from that of the names of the file and its folder, and those of each block
from the last one of the block before: a block or a file in the place of another is noticed. Version 1 had
neither state nor chain.
"""
import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from conic_jax.errors import UserError

# How to repair the folder of a store.
REMEDY = 'bring the folder back from a copy, or begin the run anew in another folder (config.run).'
NONE = -1  # No journal follows.
_STATE, _HEADER, _CHECKSUM = struct.Struct('<4sIIq'), struct.Struct('<4sII'), struct.Struct('<I')
_PLACE, _START = _STATE.size + _CHECKSUM.size, _HEADER.size + _CHECKSUM.size
BEGIN = 2 * _PLACE  # Where the first block begins.
_STATE_MAGIC, _BLOCK_MAGIC, _OLD_MAGIC = b'CnSt', b'CnBk', b'CnJ1'


class State(NamedTuple):
  """What a file says of itself.

  Attributes:
    number: of the state, counted from 0.
    blocks: appended before it; one more may be whole.
    follower: step of the journal that follows, `NONE` if there was none.
  """
  number: int = 0
  blocks: int = 0
  follower: int = NONE


class Damaged(UserError):
  """A file is damaged.

  Attributes:
    problem: the sentence without its remedy.
  """

  def __init__(self, problem: str):
    super().__init__(f'{problem}: {REMEDY}')
    self.problem = problem


class Contents(NamedTuple):
  """Result of `read`.

  Attributes:
    blocks: each [k] of the file's dtype, oldest first; views of the file mapped into memory.
    follower: step of the journal that follows, `NONE` if there was none.
  """
  blocks: list[np.ndarray]
  follower: int


class Journal:
  """A new file of blocks being written; it gets its name on `publish`.

  An appended block is on disk when `append` returns. A block that fails for lack of space leaves no trace;
  one cut short by a crash of the process or the machine is the file's last, and `read` leaves it out.
  """

  def __init__(self, path: Path):
    self._path, self._unnamed, self._length = path, unnamed(path), BEGIN
    self._seed = self._chain = _seed(path)
    self._state = State()
    self._file = os.open(self._unnamed, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
      for number in (0, 1):
        self._mark(State(number))
    except OSError:
      self.close()
      raise

  def append(self, entries: np.ndarray) -> None:
    """Appends one block.

    Args:
      entries: [k] of the journal's dtype.

    Raises:
      OSError: if there is no space.
    """
    payload = entries.tobytes()
    header = _HEADER.pack(_BLOCK_MAGIC, len(entries), zlib.crc32(payload, self._chain))
    checksum = zlib.crc32(header, self._chain)
    block = header + _CHECKSUM.pack(checksum) + payload
    try:
      write_whole(self._file, block, self._length)
      os.fsync(self._file)
      # On disk with the next block. Until then only a loss of power makes the count one too low.
      self._mark(State(self._state.number + 1, self._state.blocks + 1))
    except OSError:
      os.ftruncate(self._file, self._length)
      raise
    self._length, self._chain = self._length + len(block), checksum

  def follow(self, step: int) -> None:
    """Records on disk that the journal of a step, which has its name already, follows this one."""
    self._mark(State(self._state.number + 1, self._state.blocks, step))
    os.fsync(self._file)

  def publish(self) -> None:
    """Gives the file its name, replacing any file that had it."""
    os.fsync(self._file)
    os.replace(self._unnamed, self._path)
    sync_folder(self._path.parent)

  def close(self) -> None:
    """Closes the file; deletes it if it was not published."""
    os.close(self._file)
    with contextlib.suppress(FileNotFoundError):
      os.unlink(self._unnamed)

  def _mark(self, state):
    _write_state(self._file, state, self._seed)
    self._state = state


def read(path: Path, dtype: np.dtype, torn: bool = False, old: np.dtype | None = None) -> Contents:
  """Reads a file.

  Args:
    path: the file.
    dtype: of the entries.
    torn: whether the last block may be incomplete; it is then left out.
    old: of the entries of a file of version 1, where there may be one.

  Raises:
    Damaged: if the file is.
  """
  data = np.asarray(np.memmap(path, np.uint8, 'r')) if os.path.getsize(path) else np.zeros(0, np.uint8)
  is_old = old is not None and data[:len(_STATE_MAGIC)].tobytes() != _STATE_MAGIC
  seed, start = (None, 0) if is_old else (_seed(path), BEGIN)
  state = State() if is_old else _state(data, seed)
  if state is None or len(data) < start:
    raise Damaged(f'{path} is damaged at byte 0')
  blocks, chain = [], seed
  while start < len(data):
    end, entries, chain = _block(data, start, old if is_old else dtype, chain)
    if entries is None:
      if torn and len(blocks) >= state.blocks and (end >= len(data) or not data[start + _START:].any()):
        break
      raise Damaged(f'{path} is damaged at byte {start}')
    blocks.append(entries)
    start = end
  if len(blocks) < state.blocks:
    raise Damaged(f'{path} is cut short, with {len(blocks)} of its {state.blocks} blocks')
  return Contents(blocks, state.follower)


def unfollow(path: Path) -> None:
  """Records on disk that no journal follows that of a path, before the one that does is deleted."""
  file, seed = os.open(path, os.O_RDWR), _seed(path)
  try:
    state = _state(np.frombuffer(os.pread(file, BEGIN, 0), np.uint8), seed)
    if state is not None and state.follower != NONE:
      _write_state(file, State(state.number + 1, state.blocks), seed)
      os.fsync(file)
  finally:
    os.close(file)


def _seed(path):
  return zlib.crc32(f'{path.parent.name}/{path.name}'.encode())


def _write_state(file, state, seed):
  packed = _STATE.pack(_STATE_MAGIC, *state)
  write_whole(file, packed + _CHECKSUM.pack(zlib.crc32(packed, seed)), state.number % 2 * _PLACE)


def _state(data, seed):
  """The last state that is whole, None if there is none."""
  states = []
  for start in (0, _PLACE):
    packed, checksum = data[start:start + _STATE.size].tobytes(), data[start + _STATE.size:start + _PLACE]
    if checksum.tobytes() == _CHECKSUM.pack(zlib.crc32(packed, seed)):
      states.append(State(*_STATE.unpack(packed)[1:]))
  return max(states, default=None)


def _block(data, start, dtype, chain):
  """Where the block at `start` ends, as far as known; its entries, None if incomplete; the next chain.

  The chain is None in files of version 1.
  """
  begin = start + _START
  if begin > len(data):
    return begin, None, chain
  header, stored = data[start:start + _HEADER.size].tobytes(), data[start + _HEADER.size:begin].tobytes()
  magic, count, checksum = _HEADER.unpack(header)
  expected = zlib.crc32(header, chain or 0)
  if magic != (_OLD_MAGIC if chain is None else _BLOCK_MAGIC) or stored != _CHECKSUM.pack(expected):
    return begin, None, chain
  end = begin + count * dtype.itemsize
  payload = data[begin:end]
  whole = end <= len(data) and zlib.crc32(payload, chain or 0) == checksum
  return end, payload.view(dtype) if whole else None, chain if chain is None else expected


def write_whole(file: int, data: bytes | memoryview, offset: int) -> None:
  """Writes all bytes at an offset of a file, or raises an OSError."""
  while len(data):
    written = os.pwrite(file, data, offset)
    if not written:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    data, offset = data[written:], offset + written


def unnamed(path: Path) -> Path:
  """Where a file is written before it gets its name."""
  return path.with_name(path.name + '.new')


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
  """Opens a file to write, which takes the place of another once the block has ended and all is on disk."""
  new = unnamed(path)
  with open(new, 'wb') as file:
    yield file
    file.flush()
    os.fsync(file.fileno())
  os.replace(new, path)


def sync_folder(folder: Path) -> None:
  """Flushes the names in a folder to disk."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
