"""Files of record blocks, to which a block is appended whole or not at all.

A block is: magic (4 bytes), number of entries (4, little endian), checksum of the entries (4),
checksum of these twelve bytes (4), entries.
"""
import contextlib
import errno
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from conic_jax.errors import UserError

# How to repair the folder of a store.
REMEDY = 'bring the folder back from a copy, or begin the run anew in another folder (config.run).'
_HEADER, _CHECKSUM = struct.Struct('<4sII'), struct.Struct('<I')
_START = _HEADER.size + _CHECKSUM.size
_MAGIC = b'CnJ1'


class Journal:
  """A new file of blocks being written; it gets its name on `publish`.

  An appended block is on disk when `append` returns. A block that fails for lack of space leaves no trace;
  one cut short by a crash of the process or the machine is the file's last, and `read` leaves it out.
  """

  def __init__(self, path: Path):
    self._path, self._unnamed, self._length = path, unnamed(path), 0
    self._file = os.open(self._unnamed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

  def append(self, entries: np.ndarray) -> None:
    """Appends one block.

    Args:
      entries: [k] of the journal's dtype.

    Raises:
      OSError: if there is no space.
    """
    payload = entries.tobytes()
    header = _HEADER.pack(_MAGIC, len(entries), zlib.crc32(payload))
    block = header + _CHECKSUM.pack(zlib.crc32(header)) + payload
    try:
      write_whole(self._file, block, self._length)
      os.fsync(self._file)
    except OSError:
      os.ftruncate(self._file, self._length)
      raise
    self._length += len(block)

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


def read(path: Path, dtype: np.dtype, torn: bool = False) -> list[np.ndarray]:
  """The blocks of a file, oldest first, as views of the file mapped into memory.

  Args:
    path: the file.
    dtype: of the entries.
    torn: whether the last block may be incomplete; it is then left out.

  Raises:
    UserError: if a block is damaged.
  """
  data = np.asarray(np.memmap(path, np.uint8, 'r')) if os.path.getsize(path) else np.zeros(0, np.uint8)
  blocks, start = [], 0
  while start < len(data):
    end, entries = _block(data, start, dtype)
    if entries is None:
      if torn and (end >= len(data) or not data[start + _START:].any()):
        return blocks
      raise UserError(f'{path} is damaged at byte {start}: {REMEDY}')
    blocks.append(entries)
    start = end
  return blocks


def _block(data, start, dtype):
  """Where the block at `start` ends, as far as known, and its entries, None if incomplete."""
  begin = start + _START
  if begin > len(data):
    return begin, None
  header = data[start:start + _HEADER.size].tobytes()
  magic, count, checksum = _HEADER.unpack(header)
  if magic != _MAGIC or zlib.crc32(header) != _CHECKSUM.unpack(data[start + _HEADER.size:begin])[0]:
    return begin, None
  end = begin + count * dtype.itemsize
  payload = data[begin:end]
  whole = end <= len(data) and zlib.crc32(payload) == checksum
  return end, payload.view(dtype) if whole else None


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


def sync_folder(folder: Path) -> None:
  """Flushes the names in a folder to disk."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
