"""Random access to TFRecord files through an index of record offsets, built once and cached.

A record is: length (8 bytes, little endian), checksum (4), data (length), checksum (4).
"""
import os
from collections.abc import Sequence

import numpy as np

from conic_jax.data import files, mapped, parallel
from conic_jax.errors import UserError

_HEADER, _FOOTER = 12, 4
_BLOCK = 1 << 24  # Bytes; a remote file is streamed in such blocks.
_FILES = 64  # Indexed at a time.


class TFRecords:
  """The concatenated records of slices of TFRecord files.

  Args:
    slices: (path, first record, number of records) in order.
    cache: folder of the indexes.

  Raises:
    UserError: if a file is missing, damaged or shorter than its slice.
  """

  def __init__(self, slices: Sequence[tuple[str, int, int]], cache: str):
    paths = list(dict.fromkeys(path for path, _, _ in slices))
    self._records, sizes = load_index(paths, cache)
    begins = dict(zip(paths, np.cumsum(sizes) - sizes, strict=True))
    counts = dict(zip(paths, sizes, strict=True))
    for path, first, count in slices:
      if first + count > counts[path]:
        raise UserError(f'{path} has {counts[path]} records where {first + count} were expected: '
                        'prepare the data set again.')
    self._paths = [path for path, _, _ in slices]
    self._ends = np.cumsum([count for *_, count in slices])
    # What is added to an id to find its record among those of all files.
    self._shifts = np.array([begins[path] + first + count for path, first, count in slices]) - self._ends

  def __len__(self) -> int:
    return int(self._ends[-1])

  def read(self, ids: np.ndarray) -> list[bytes]:
    """The data of the records; b'' for unreadable ones."""
    numbers = np.searchsorted(self._ends, ids, side='right')
    found = self._records[ids + self._shifts[numbers]]
    places = list(zip(numbers.tolist(), found['start'].tolist(), found['length'].tolist(), strict=True))
    return parallel.map_blocks(self._read, places)

  def _read(self, place):
    number, start, length = place
    try:
      return files.read(self._paths[number], start, length)
    except OSError:
      return b''


def load_index(paths: Sequence[str], cache: str) -> tuple[np.ndarray, np.ndarray]:
  """Where the records are, from the cache if the files have not changed since it was written.

  Args:
    paths: TFRecord files.
    cache: folder of the indexes.

  Returns:
    Start and length in bytes of each record's data, `mapped.RECORD` [n], mapped into memory; number of
    records in each file, int64 [files].

  Raises:
    UserError: if a file is missing or damaged, or the cache cannot be written.
  """
  stamps = parallel.map_blocks(files.stamp, paths, block=1)

  def build(writer):
    counts = []
    for first in range(0, len(paths), _FILES):
      some = [(path, size) for path, (size, _) in zip(paths[first:first + _FILES], stamps[first:])]
      for found in parallel.map_blocks(index_file, some, block=1):
        writer.add('records', found)
        counts.append(len(found))
    return {'counts': counts}

  origin = {'kind': 'tfrecord', 'files': [[path, *stamp] for path, stamp in zip(paths, stamps, strict=True)]}
  table = mapped.load(cache, os.path.basename(paths[0]), origin, build)
  return table.parts['records'], np.array(table.facts['counts'], np.int64)


def index_file(path_and_size: tuple[str, int]) -> np.ndarray:
  """Start and length in bytes of the data of every record in a file, `mapped.RECORD` [n].

  Raises:
    UserError: if the last record does not end at the end of the file.
  """
  path, size = path_and_size
  # Of a local file only the headers are read; a remote one is faster to stream whole.
  block_size = _BLOCK if files.is_remote(path) else _HEADER
  found, at, begin, block = [], 0, 0, b''
  with files.open_binary(path) as file:
    while at < size:
      if at + _HEADER > begin + len(block):
        file.seek(at)
        begin, block = at, file.read(block_size)
      length = int.from_bytes(block[at - begin:at - begin + 8], 'little')
      found.append((at + _HEADER, min(length, mapped.LONGEST), -1))
      at += _HEADER + length + _FOOTER
  if at != size:
    raise UserError(f'{path} is damaged: it ends at byte {size}, inside a record; copy it again or '
                    'prepare the data set again.')
  return np.array(found, mapped.RECORD)
