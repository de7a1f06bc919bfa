"""Tables in files that are mapped into memory: a process holds what it reads of them, and can drop it again.

A table is a folder with a raw file for each part and a header, which says what the table was made of. One
that was made of other files, or is not whole, is made again.
"""
import contextlib
import dataclasses
import hashlib
import itertools
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, TypeVar

import numpy as np

from conic_jax.errors import UserError

Item = TypeVar('Item')

FORMAT = 1
_HEADER = 'header.json'
_IN_MEMORY = 1 << 26  # Bytes; a temporary table that is smaller needs no file.

RECORD = np.dtype([('start', '<i8'), ('length', '<u4'), ('label', '<i4')])
LONGEST = 2 ** 32 - 1
# `text` has strings one after another, and `ends` where each ends; `groups` counts the rows of row groups.
PARTS = {'records': RECORD, 'labels': np.dtype('<i4'), 'groups': np.dtype('<i8'), 'text': np.dtype('u1'),
         'ends': np.dtype('<i8')}


class Writer:
  """Appends to the parts of a table.

  Args:
    make_file: opens the file of a part.
  """

  def __init__(self, make_file: Callable[[str], IO[bytes]]):
    self._make_file = make_file
    self._written = 0
    self.files: dict[str, IO[bytes]] = {}

  def add(self, part: str, values: Any) -> None:
    """Appends values to a part; an empty array makes an empty part."""
    if part not in self.files:
      self.files[part] = self._make_file(part)
    self.files[part].write(np.ascontiguousarray(values, PARTS[part]).data)

  def add_strings(self, strings: Sequence[str]) -> None:
    """Appends strings, such as paths; bytes that are no UTF-8 stay as they are."""
    encoded = [os.fsencode(string) for string in strings]
    self.add('text', np.frombuffer(b''.join(encoded), np.uint8))
    ends = self._written + np.cumsum([len(string) for string in encoded], dtype=np.int64)
    self.add('ends', ends)
    self._written = int(ends[-1]) if len(ends) else self._written


@dataclasses.dataclass(frozen=True)
class Table:
  """A table to read.

  Attributes:
    facts: what its maker noted.
    parts: read-only arrays by the names of `PARTS`.
  """
  facts: dict[str, Any]
  parts: dict[str, np.ndarray]

  def string(self, index: int) -> str:
    """One of the strings."""
    ends = self.parts['ends']
    return os.fsdecode(self.parts['text'][ends[index - 1] if index else 0:ends[index]].tobytes())

  def strings(self, block: int = 1 << 14) -> Iterator[str]:
    """All strings, in order."""
    ends, begin = self.parts['ends'], 0
    for first in range(0, len(ends), block):
      some = ends[first:first + block].tolist()
      text = self.parts['text'][begin:some[-1]].tobytes()
      for start, end in zip([begin, *some], some):
        yield os.fsdecode(text[start - begin:end - begin])
      begin = some[-1]


def blocks(items: Iterable[Item], size: int = 1 << 14) -> Iterator[list[Item]]:
  """The items in lists of `size`, the last of which may be shorter: what is in memory at a time."""
  remaining = iter(items)
  return iter(lambda: list(itertools.islice(remaining, size)), [])


def load(cache: str, name: str, origin: dict[str, Any], build: Callable[[Writer], dict[str, Any]]) -> Table:
  """Opens a table of the cache, which is built first if it is not there or was made of something else.

  Args:
    cache: folder of tables.
    name: a name for people; tables of other files may share it.
    origin: what the table is made of, JSON: `files` are [path, size, tag], and whatever else it depends on.
    build: writes the parts and returns the facts, JSON.

  Raises:
    UserError: if the table cannot be written; what `build` raises.
  """
  origin = json.loads(json.dumps({'format': FORMAT, **origin}))
  about = json.dumps({**origin, 'files': [path for path, *_ in origin['files']]})
  folder = os.path.join(os.path.expanduser(cache),
                        f'{name[:60]}-{hashlib.sha256(about.encode()).hexdigest()[:16]}')
  if (found := _open(folder, origin)) is not None:
    return found
  try:
    made = _write(folder, origin, build)
  except OSError as error:
    raise UserError(f'The index of the images cannot be written to {folder} ({error.strerror or error}): set '
                    'config.data.cache to a folder that can be written.') from None
  found = _open(made, origin)
  _publish(made, folder)
  if found is None:
    raise UserError(f'The index of the images in {os.path.dirname(folder)} is not whole, though just '
                    'written: look at the disk, or set config.data.cache to another folder.')
  return found


def temporary(build: Callable[[Writer], dict[str, Any]], most: int = _IN_MEMORY) -> Table:
  """A table of this process alone; a part of more than `most` bytes is in a file without a name."""
  writer = Writer(lambda part: tempfile.SpooledTemporaryFile(most))  # noqa: SIM115
  try:
    facts = build(writer)
    parts = {part: _read_or_map(file, PARTS[part], most) for part, file in writer.files.items()}
  finally:
    for file in writer.files.values():
      file.close()
  return Table(facts, parts)


def _read_or_map(file, dtype, most):
  if file.tell() > most:
    file.flush()
    return _map(file.fileno(), dtype)
  file.seek(0)
  return np.frombuffer(file.read(), dtype)


def _write(folder, origin, build):
  os.makedirs(os.path.dirname(folder), exist_ok=True)
  made = tempfile.mkdtemp(dir=os.path.dirname(folder), prefix='.part-')
  try:
    writer = Writer(lambda part: open(os.path.join(made, part), 'wb'))  # noqa: SIM115
    try:
      facts = build(writer)
    finally:
      for file in writer.files.values():
        file.close()
    sizes = {part: os.path.getsize(os.path.join(made, part)) for part in writer.files}
    with open(os.path.join(made, _HEADER), 'w') as file:
      json.dump({'origin': origin, 'sizes': sizes, 'facts': facts}, file)
    os.chmod(made, 0o755)
  except BaseException:
    shutil.rmtree(made, ignore_errors=True)
    raise
  return made


def _publish(made, folder):
  """Gives a finished table its name; who has an older one of that name, or this one, open can read on."""
  old = f'{made}-old'
  with contextlib.suppress(OSError):  # Another process may do the same at this moment.
    if os.path.lexists(folder):
      os.rename(folder, old)
    os.rename(made, folder)
  for path in (old, made):
    shutil.rmtree(path, ignore_errors=True)


def _open(folder, origin):
  try:
    with open(os.path.join(folder, _HEADER), 'rb') as file:
      header = json.load(file)
    if header['origin'] != origin:
      return None
    parts = {}
    for part, size in header['sizes'].items():
      with open(os.path.join(folder, part), 'rb') as file:
        parts[part] = _map(file.fileno(), PARTS[part])
      if parts[part].nbytes != size:
        return None
    return Table(header['facts'], parts)
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _map(descriptor, dtype):
  if not os.fstat(descriptor).st_size:
    return np.empty(0, dtype)
  mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
  if hasattr(mmap, 'MADV_RANDOM'):
    mapped.madvise(mmap.MADV_RANDOM)
  return np.frombuffer(mapped, dtype)
