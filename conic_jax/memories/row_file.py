"""The rows of a process in a sparse file, and a checksum of each in a file beside it.

A record is: checksum of its id and the rest (4 bytes), seen + 1 (8; 0 if never written), weights and momentum
(8D). The file of checksums has that of each record once more (0 if never written): so a record that was lost
as a whole, or is not the one last written, is noticed too. A record is its own page of checksums: rows are
read at random, one at a time, and a larger page would have to be read whole for each of them.

The file of checksums agrees with the rows at each `sync`; in between they are in memory, 4 bytes for each row
near one that was written. So records written since then can be brought back only together with their
checksums, which is what the store's journal does.
"""
import mmap
import os
import zlib
from pathlib import Path

import numpy as np

from conic_jax.errors import UserError
from conic_jax.memories import journal
from conic_jax.memories.journal import REMEDY

_SUM = np.dtype('<u4')
_BLOCK = 1024  # Records read at once where all are; checksums written at once, a page of memory.


class RowFile:
  """Both files. Records are read through a memory map and written by `pwrite`, where a full disk is an error;
  in a map it would be a signal.

  Attributes:
    record: dtype of a record.
  """

  def __init__(self, path: Path, ids: range, dim: int):
    """Opens nothing yet.

    Args:
      path: of the rows; the checksums are in PATH.sums.
      ids: of the rows.
      dim: D.
    """
    self.path, self.sums_path, self._ids = path, path.with_name(path.name + '.sums'), ids
    self.record = np.dtype([('crc', _SUM), ('time', '<i8'), ('row', '<f4', (2, dim))])
    self._records, self._sums = np.zeros(0, self.record), np.zeros(0, _SUM)
    self._changed = np.zeros(-(-len(ids) // _BLOCK), bool)  # Blocks of checksums since the last `sync`.
    self._files: list[int] = []

  def create(self) -> None:
    """Creates both files, with no row written."""
    for path, dtype in self._dtypes():
      with open(path, 'xb') as file:
        file.truncate(len(self._ids) * dtype.itemsize)

  def check(self, with_sums: bool) -> None:
    """Raises a UserError if a file has another size than it must have."""
    for path, dtype in self._dtypes()[:1 + with_sums]:
      size, expected = os.path.getsize(path) if path.is_file() else 'no', len(self._ids) * dtype.itemsize
      if size != expected:
        raise UserError(f'{path} has {size} bytes where {expected} were expected: {REMEDY}')

  def add_sums(self) -> None:
    """Makes the file of checksums for rows of version 1, which had none: the records' own, one and all."""
    with open(self.path, 'rb') as rows, journal.replacing(self.sums_path) as sums:
      for start in range(0, len(self._ids), _BLOCK):
        records = np.fromfile(rows, self.record, min(_BLOCK, len(self._ids) - start))
        sums.write(records['crc'].tobytes())
    journal.sync_folder(self.sums_path.parent)

  def open(self, with_sums: bool = True) -> None:
    """Opens the files that `check` found whole; without the checksums records can only be overwritten."""
    for path, _ in self._dtypes()[:1 + with_sums]:
      self._files.append(os.open(path, os.O_RDWR))
    self._records = _mapped(self._files[0], len(self._ids), self.record, mmap.ACCESS_READ, mmap.MADV_RANDOM)
    if with_sums:
      self._sums = _mapped(self._files[1], len(self._ids), _SUM, mmap.ACCESS_COPY, mmap.MADV_NORMAL)
      if hasattr(os, 'posix_fadvise'):  # A four hundredth of the rows or less, at random places all the time.
        os.posix_fadvise(self._files[1], 0, 0, os.POSIX_FADV_WILLNEED)

  def fetch(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Records and checksums as they are in the files, [k] each."""
    if hasattr(os, 'posix_fadvise'):  # Lets the disk read them all at once.
      size = self.record.itemsize
      for place in places.tolist():
        os.posix_fadvise(self._files[0], place * size, size, os.POSIX_FADV_WILLNEED)
    return self._records[places], self._sums[places]

  def sound(self, places: np.ndarray, records: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Whether records are those that were written last: bool [k]."""
    whole = np.where(records['time'], records['crc'] == self.checksums(places, records), _empty(records))
    return whole & (records['crc'] == sums)

  def checksums(self, places: np.ndarray, records: np.ndarray) -> np.ndarray:
    """CRC-32 of each record without its checksum, begun with the id: uint32 [k]."""
    size, data = self.record.itemsize, memoryview(records.tobytes())
    ids = (places + self._ids.start).tolist()
    return np.array([zlib.crc32(data[index * size + 4:(index + 1) * size], id & 0xffffffff)
                     for index, id in enumerate(ids)], _SUM)

  def overwrite(self, places: np.ndarray, records: np.ndarray, sums: np.ndarray) -> None:
    """Overwrites records, and their checksums if they are open."""
    size, data = self.record.itemsize, memoryview(records.tobytes())
    for index, place in enumerate(places.tolist()):
      journal.write_whole(self._files[0], data[index * size:(index + 1) * size], place * size)
    if len(self._sums):
      self._sums[places] = sums
      self._changed[places // _BLOCK] = True

  def sync(self) -> None:
    """Flushes records and checksums to disk."""
    for block in np.flatnonzero(self._changed).tolist():
      sums = self._sums[block * _BLOCK:(block + 1) * _BLOCK]
      journal.write_whole(self._files[1], sums.tobytes(), block * _BLOCK * _SUM.itemsize)
      self._changed[block] = False
    for file in self._files:
      os.fsync(file)

  def close(self) -> None:
    """Releases the files."""
    self._records, self._sums = np.zeros(0, self.record), np.zeros(0, _SUM)
    while self._files:
      os.close(self._files.pop())

  def _dtypes(self):
    return [(self.path, self.record), (self.sums_path, _SUM)]


def _mapped(file, count, dtype, access, advice):
  if not count:
    return np.zeros(0, dtype)
  mapped = mmap.mmap(file, count * dtype.itemsize, access=access)
  mapped.madvise(advice)
  return np.frombuffer(mapped, dtype)


def _empty(records: np.ndarray) -> np.ndarray:
  """Whether every byte of a record is zero: bool [k]."""
  data = np.frombuffer(records.tobytes(), np.uint8)
  return np.logical_not(data.reshape(len(records), records.itemsize).any(axis=1))
