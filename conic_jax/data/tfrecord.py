"""Random access to TFRecord files through an index of record offsets, built once and cached.

A record is: length (8 bytes, little endian), checksum (4), data (length), checksum (4).
"""
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Sequence

import numpy as np

from conic_jax.data import files, parallel
from conic_jax.errors import UserError

_HEADER, _FOOTER = 12, 4
_BLOCK = 1 << 24  # Bytes; a remote file is streamed in such blocks.


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
    starts, lengths, counts = load_index(paths, cache)
    ends = dict(zip(paths, np.cumsum(counts), strict=True))
    sizes = dict(zip(paths, counts, strict=True))
    records = []
    for path, first, count in slices:
      if first + count > sizes[path]:
        raise UserError(f'{path} has {sizes[path]} records where {first + count} were expected: '
                        'prepare the data set again.')
      begin = ends[path] - sizes[path] + first
      records.append(np.arange(begin, begin + count))
    records = np.concatenate(records)
    self._paths = [path for path, _, _ in slices]
    self._file = np.repeat(np.arange(len(slices), dtype=np.int32), [count for *_, count in slices])
    self._starts, self._lengths = starts[records], lengths[records]

  def __len__(self) -> int:
    return len(self._starts)

  def read(self, ids: np.ndarray) -> list[bytes]:
    """The data of the records; b'' for unreadable ones."""
    return parallel.map_blocks(self._read, ids.tolist())

  def _read(self, id):
    try:
      return files.read(self._paths[self._file[id]], int(self._starts[id]), int(self._lengths[id]))
    except OSError:
      return b''


def load_index(paths: Sequence[str], cache: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Offsets of the records, from the cache if the files have not changed since it was written.

  Args:
    paths: TFRecord files.
    cache: folder of the indexes.

  Returns:
    Start and length in bytes of each record's data, int64 [n] each; number of records in each file,
    int64 [files].

  Raises:
    UserError: if a file is missing or damaged, or the cache cannot be written.
  """
  stamps = np.array(parallel.map_blocks(files.stamp, paths, block=1), np.int64)
  digest = hashlib.sha256('\n'.join(paths).encode()).hexdigest()[:16]
  kept = os.path.join(os.path.expanduser(cache), f'{os.path.basename(paths[0])}-{digest}.npz')
  try:
    with open(kept, 'rb') as file, np.load(file, allow_pickle=False) as index:
      if np.array_equal(index['stamps'], stamps):
        return index['starts'], index['lengths'], index['counts']
  except (OSError, ValueError, KeyError, zipfile.BadZipFile):
    pass  # Missing or broken: rebuild it.
  indexes = parallel.map_blocks(index_file, [(path, int(size)) for path, (size, _)
                                             in zip(paths, stamps, strict=True)], block=1)
  starts, lengths = (np.concatenate(part) for part in zip(*indexes, strict=True))
  counts = np.array([len(starts) for starts, _ in indexes], np.int64)
  _save(kept, stamps=stamps, starts=starts, lengths=lengths, counts=counts)
  return starts, lengths, counts


def index_file(path_and_size: tuple[str, int]) -> tuple[np.ndarray, np.ndarray]:
  """Start and length in bytes of the data of every record in a file, int64 each.

  Raises:
    UserError: if the last record does not end at the end of the file.
  """
  path, size = path_and_size
  # Of a local file only the headers are read; a remote one is faster to stream whole.
  block_size = _BLOCK if files.is_remote(path) else _HEADER
  starts, lengths, at, begin, block = [], [], 0, 0, b''
  with files.open_binary(path) as file:
    while at < size:
      if at + _HEADER > begin + len(block):
        file.seek(at)
        begin, block = at, file.read(block_size)
      length = int.from_bytes(block[at - begin:at - begin + 8], 'little')
      starts.append(at + _HEADER)
      lengths.append(length)
      at += _HEADER + length + _FOOTER
  if at != size:
    raise UserError(f'{path} is damaged: it ends at byte {size}, inside a record; copy it again or '
                    'prepare the data set again.')
  return np.array(starts, np.int64), np.array(lengths, np.int64)


def _save(path, **arrays):
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), delete=False) as file:
      np.savez(file, **arrays)
    os.replace(file.name, path)
  except OSError as error:
    raise UserError(f'The index of the records cannot be written to {path} ({error.strerror}): set '
                    'config.data.cache to a folder that can be written.') from None
