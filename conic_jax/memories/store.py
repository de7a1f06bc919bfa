"""Stores of the classifier's rows outside the window: in host memory or on disk.

Each process stores its own share of the rows. A store can be restored to every kept checkpoint of the run,
and only to these. One thread may write while another reads other rows.
"""
import abc
import contextlib
import dataclasses
import json
import mmap
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conic_jax.errors import UserError
from conic_jax.memories import journal
from conic_jax.memories.journal import REMEDY

_VERSION = 1
_PAGE = 4096  # Bytes: the least that a file system allocates for a record in a sparse file.
_DUMP_BLOCK = 16384  # Rows.


@dataclasses.dataclass(frozen=True)
class Layout:
  """The shape of the rows, and which of them a process stores.

  Attributes:
    num_instances: N.
    dim: D.
    seed: the run's seed; rows never written are derived from it.
    process_index: p.
    process_count: P.
  """
  num_instances: int
  dim: int
  seed: int
  process_index: int = 0
  process_count: int = 1

  @property
  def ids(self) -> range:
    """The ids of this process: p ⌈N/P⌉ … (p + 1) ⌈N/P⌉ − 1, below N."""
    share = -(-self.num_instances // self.process_count)
    start = min(self.process_index * share, self.num_instances)
    return range(start, min(start + share, self.num_instances))


class Stored(NamedTuple):
  """Result of `read`.

  Attributes:
    rows: float32 [k, 2, D], weights, then momentum; zeros if never written.
    seen: int64 [k], the step before whose update the row had this value; 0 if never written.
    written: bool [k].
  """
  rows: np.ndarray
  seen: np.ndarray
  written: np.ndarray


class Store(abc.ABC):
  """The contract, and what both kinds share; `open_store` creates one.

  Attributes:
    layout: the layout of the rows.
    folder: this process's folder, within the run's store.
  """
  kind: str

  def __init__(self, folder: Path, layout: Layout):
    self.layout = layout
    self.folder = folder / f'process-{layout.process_index}'

  @abc.abstractmethod
  def read(self, ids: np.ndarray) -> Stored:
    """Reads rows.

    Args:
      ids: int64 [k], of this process.

    Raises:
      UserError: for ids outside this process's rows, and for damaged rows.
    """

  @abc.abstractmethod
  def write(self, ids: np.ndarray, rows: np.ndarray, seen: np.ndarray) -> None:
    """Writes rows.

    Args:
      ids: int64 [k], rows of this process, all different.
      rows: float32 [k, 2, D].
      seen: int64 [k].

    Raises:
      UserError: for ids outside this process's rows, and if the disk is full.
    """

  @abc.abstractmethod
  def checkpoint(self, step: int, kept: Sequence[int]) -> None:
    """Records the current rows as those that `open_store` restores for this step.

    Args:
      step: steps done.
      kept: the other checkpoints that the run may resume from; data that none of them needs is deleted.

    Raises:
      UserError: if the disk is full.
    """

  @abc.abstractmethod
  def close(self) -> None:
    """Releases files and memory; writes since the last checkpoint may be lost."""

  def _identity(self) -> dict[str, object]:
    return {'version': _VERSION, 'kind': self.kind, **dataclasses.asdict(self.layout)}

  def _write_identity(self) -> None:
    path = self.folder / 'store.json'
    new = journal.unnamed(path)
    new.write_text(json.dumps(self._identity(), indent=2) + '\n')
    os.replace(new, path)
    for folder in (self.folder, *self.folder.absolute().parents[:2]):  # All that may be new.
      journal.sync_folder(folder)

  def _check_identity(self) -> None:
    """Raises a UserError that names each difference from the run that created the store."""
    path = self.folder / 'store.json'
    if not path.is_file():
      raise UserError(f'{self.folder} holds no store of the rows that the checkpoint needs: {REMEDY}')
    try:
      saved = json.loads(path.read_text())
    except ValueError:
      raise UserError(f'{path} is damaged: {REMEDY}') from None
    differences = [f'{name} was {saved.get(name)!r}, is {value!r}'
                   for name, value in self._identity().items() if saved.get(name) != value]
    if differences:
      raise UserError(f'The store {self.folder} does not fit this run: {"; ".join(differences)}. Go back '
                      'to those settings, or set config.run to another folder.')

  def _places(self, ids: np.ndarray) -> np.ndarray:
    """Positions of ids among the rows of this process, int64 [k]."""
    places = np.asarray(ids, np.int64) - self.layout.ids.start
    outside = (places < 0) | (places >= len(self.layout.ids))
    if outside.any():
      raise UserError(f'Instance {np.asarray(ids)[outside][0]} is none of the rows of process '
                      f'{self.layout.process_index}, {self.layout.ids.start} to '
                      f'{self.layout.ids.stop - 1}: the data set must have the '
                      f'{self.layout.num_instances} images that the run began with.')
    return places

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Raises a disk error as a UserError."""
    try:
      yield
    except OSError as error:
      raise UserError(f'The store {self.folder} could not be written ({error.strerror}). The checkpoints '
                      'are whole: free room on the disk and run the same command again to go on from '
                      'the last one.') from error

  def _steps(self, prefix: str) -> dict[int, Path]:
    """Files in the folder whose name is the prefix and a step, in ascending order."""
    named = {int(path.name[len(prefix):]): path for path in self.folder.glob(f'{prefix}*')
             if path.name[len(prefix):].isdigit()}
    return dict(sorted(named.items()))

  def _clear(self, *patterns: str) -> None:
    for pattern in patterns:
      for path in self.folder.glob(pattern):
        path.unlink()

  def _not_kept(self, step: int, steps: Sequence[int]) -> UserError:
    return UserError(f'The store {self.folder} was not kept for step {step}, only for '
                     f'{", ".join(map(str, steps)) or "none"}, so it is not the one that the checkpoint '
                     f'was saved with: {REMEDY}')


def open_store(kind: str, folder: Path, layout: Layout, step: int | None = None) -> Store:
  """Opens the store of a run.

  Args:
    kind: 'host' or 'disk'.
    folder: the run's store.
    layout: the layout of the rows.
    step: the checkpoint whose rows are restored; None starts with no row written, whatever the folder held.

  Raises:
    UserError: if the store is another run's, damaged, not kept for this step, or cannot be written; for an
      unknown kind.
  """
  kinds = {store.kind: store for store in (HostStore, DiskStore)}
  if kind not in kinds:
    raise UserError(f"There is no store '{kind}'; available: {', '.join(kinds)}.")
  return kinds[kind](folder, layout, step)


class HostStore(Store):
  """Rows in host memory, allocated as they are first written; each checkpoint is a copy of them all.

  A copy gets its name once it is complete on disk: a crash of the process or the machine at any moment leaves
  the earlier copies intact.
  """
  kind = 'host'

  def __init__(self, folder: Path, layout: Layout, step: int | None):
    super().__init__(folder, layout)
    record = np.dtype([('time', '<i8'), ('row', '<f4', (2, layout.dim))])
    self._entry = np.dtype([('place', '<i8'), ('record', record)])
    try:
      self._records = np.zeros(len(layout.ids), record)
    except MemoryError:
      size = len(layout.ids) * record.itemsize
      raise UserError(f'The rows of process {layout.process_index} need {_readable(size)} of host memory: '
                      "set config.classifier.store to 'disk', or use more hosts.") from None
    with self._writing():
      if step is None:
        self._create()
      else:
        self._restore(step)

  def _create(self):
    self.folder.mkdir(parents=True, exist_ok=True)
    self._clear('store.json', 'host-*')
    self._write_identity()

  def _restore(self, step):
    self._check_identity()
    dumps = self._steps('host-')
    if step not in dumps:
      raise self._not_kept(step, list(dumps))
    self._clear('*.new')
    blocks = journal.read(dumps[step], self._entry)
    if not blocks or len(blocks[-1]):
      raise UserError(f'{dumps[step]} is cut short: {REMEDY}')
    for entries in blocks:
      self._records[entries['place']] = entries['record']

  def read(self, ids: np.ndarray) -> Stored:
    return _stored(self._records[self._places(ids)])

  def write(self, ids: np.ndarray, rows: np.ndarray, seen: np.ndarray) -> None:
    self._records[self._places(ids)] = _records(self._records.dtype, rows, seen)

  def checkpoint(self, step: int, kept: Sequence[int]) -> None:
    with self._writing(), contextlib.closing(journal.Journal(self.folder / f'host-{step}')) as dump:
      for start in range(0, len(self._records), _DUMP_BLOCK):
        block = self._records[start:start + _DUMP_BLOCK]
        places = np.flatnonzero(block['time'])
        entries = np.empty(len(places), self._entry)
        entries['place'], entries['record'] = start + places, block[places]
        if len(entries):
          dump.append(entries)
      dump.append(np.empty(0, self._entry))  # Marks the end.
      dump.publish()
      for old, path in self._steps('host-').items():
        if old != step and old not in kept:
          path.unlink()

  def close(self) -> None:
    self._records = np.zeros(0, self._records.dtype)


class DiskStore(Store):
  """Rows in one sparse file, with an undo journal that leads back to every kept checkpoint.

  Before a record is overwritten, its old bytes are on disk in the journal of the last checkpoint. So every
  kept checkpoint can be restored bit for bit, whenever the process or the machine dies, even during a write,
  a checkpoint or the opening of the store. Records are read through a memory map and written by `pwrite`,
  where a full disk is an error; in a map it would be a signal.

  Files: `rows`; `journal-S`, the old value of each record at each write after step S, oldest first. A record
  is: checksum of its id and the rest (4 bytes), seen + 1 (8; 0 if never written), weights and momentum (8D).
  """
  kind = 'disk'

  def __init__(self, folder: Path, layout: Layout, step: int | None):
    super().__init__(folder, layout)
    self._record = np.dtype([('crc', '<u4'), ('time', '<i8'), ('row', '<f4', (2, layout.dim))])
    self._entry = np.dtype([('place', '<i8'), ('record', self._record)])
    self._path = self.folder / 'rows'
    self._size = len(layout.ids) * self._record.itemsize
    with self._writing():
      if step is None:
        self._create()
      else:
        self._check(step)
      self._file = os.open(self._path, os.O_RDWR)
      self._records = self._mapped()
      if step is not None:
        self._undo(step)
      self._journal = self._new_journal(step or 0)
      if step is None:
        self._write_identity()

  def _create(self):
    self.folder.mkdir(parents=True, exist_ok=True)
    self._clear('store.json', 'rows', 'journal-*')
    with open(self._path, 'xb') as file:
      file.truncate(self._size)

  def _check(self, step):
    self._check_identity()
    steps = self._steps('journal-')
    if step not in steps:
      raise self._not_kept(step, list(steps))
    size = os.path.getsize(self._path) if self._path.is_file() else 'no'
    if size != self._size:
      raise UserError(f'{self._path} has {size} bytes where {self._size} were expected: {REMEDY}')
    self._clear('*.new')

  def _undo(self, step):
    """Restores the records; if interrupted anywhere, it can be restarted for this or an older step."""
    journals = [path for number, path in self._steps('journal-').items() if number >= step]
    for path in reversed(journals):
      for entries in reversed(journal.read(path, self._entry, torn=path == journals[-1])):
        self._overwrite(entries['place'], entries['record'])
    os.fsync(self._file)
    for path in reversed(journals[1:]):
      path.unlink()
      journal.sync_folder(self.folder)  # No journal may outlive an older one.

  def read(self, ids: np.ndarray) -> Stored:
    records = self._fetch(self._places(ids))
    sound = np.where(records['time'], records['crc'] == _checksums(ids, records), _empty(records))
    if not sound.all():
      raise UserError(f'{self._path} is damaged at instance {np.asarray(ids)[~sound][0]}: {REMEDY}')
    return _stored(records)

  def write(self, ids: np.ndarray, rows: np.ndarray, seen: np.ndarray) -> None:
    places = self._places(ids)
    records = _records(self._record, rows, seen)
    records['crc'] = _checksums(ids, records)
    before = np.empty(len(places), self._entry)
    before['place'], before['record'] = places, self._fetch(places)
    with self._writing():
      self._journal.append(before)
      self._overwrite(places, records)

  def checkpoint(self, step: int, kept: Sequence[int]) -> None:
    with self._writing():
      os.fsync(self._file)
      before, self._journal = self._journal, self._new_journal(step)
      before.close()
      for number, path in self._steps('journal-').items():
        if number < min([step, *kept]):
          path.unlink()

  def close(self) -> None:
    self._records = np.zeros(0, self._record)
    self._journal.close()
    os.close(self._file)

  def _mapped(self):
    if not self._size:
      return np.zeros(0, self._record)
    mapped = mmap.mmap(self._file, self._size, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, self._record)

  def _new_journal(self, step):
    new = journal.Journal(self.folder / f'journal-{step}')
    new.publish()
    return new

  def _fetch(self, places: np.ndarray) -> np.ndarray:
    """Records as stored in the file, [k]."""
    if hasattr(os, 'posix_fadvise'):  # Lets the disk read them all at once.
      size = self._record.itemsize
      for place in places.tolist():
        os.posix_fadvise(self._file, place * size, size, os.POSIX_FADV_WILLNEED)
    return self._records[places]

  def _overwrite(self, places: np.ndarray, records: np.ndarray) -> None:
    size, data = self._record.itemsize, memoryview(records.tobytes())
    for index, place in enumerate(places.tolist()):
      journal.write_whole(self._file, data[index * size:(index + 1) * size], place * size)


def shortage(folder: Path, kind: str, layout: Layout, rows_written: int, rows_between_checkpoints: int,
             keep: int) -> str | None:
  """What the disk lacks for the run's store, which all processes share.

  Args:
    folder: the run's store; it need not exist yet.
    kind: 'host' or 'disk'.
    layout: the layout of the rows.
    rows_written: row writes of the whole run, repeats included.
    rows_between_checkpoints: row writes from one checkpoint to the next.
    keep: number of checkpoints kept.

  Returns:
    A sentence with the size needed; None if there is room.
  """
  record = 12 + 8 * layout.dim
  different = min(layout.num_instances, rows_written)
  if kind == 'disk':
    rows = min(layout.num_instances * record, different * (record + _PAGE))
    needed = rows + (keep + 1) * min(rows_written, rows_between_checkpoints) * (record + 8)
  else:
    needed = (keep + 1) * different * (record + 8)
  held = _held(folder)
  existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
  free = shutil.disk_usage(existing).free
  if needed <= held + free:
    return None
  return (f'{folder} needs {_readable(needed)} for the rows that this run will keep there, and its disk has '
          f'{_readable(held + free)} for them: free room, set config.run to a folder of a larger disk, or '
          f'keep fewer checkpoints (config.checkpoint.keep is {keep}).')


def _held(folder: Path) -> int:
  """Bytes on disk of the files below a folder."""
  held = 0
  for path in folder.rglob('*'):
    with contextlib.suppress(FileNotFoundError):  # Another process may be changing them.
      held += path.stat().st_blocks * 512
  return held


def _readable(size: int) -> str:
  return f'{size / 2**30:,.1f} GiB' if size >= 2**30 else f'{size / 2**20:,.1f} MiB'


def _records(dtype: np.dtype, rows: np.ndarray, seen: np.ndarray) -> np.ndarray:
  records = np.zeros(len(seen), dtype)
  records['row'], records['time'] = rows, seen + 1
  return records


def _stored(records: np.ndarray) -> Stored:
  written = records['time'] > 0
  return Stored(np.ascontiguousarray(records['row']), np.where(written, records['time'] - 1, 0), written)


def _checksums(ids: np.ndarray, records: np.ndarray) -> np.ndarray:
  """CRC-32 of each record without its checksum field, seeded with the id: uint32 [k]."""
  size, data = records.dtype.itemsize, memoryview(records.tobytes())
  return np.array([zlib.crc32(data[index * size + 4:(index + 1) * size], id & 0xffffffff)
                   for index, id in enumerate(np.asarray(ids).tolist())], '<u4')


def _empty(records: np.ndarray) -> np.ndarray:
  """Whether every byte of a record is zero: bool [k]."""
  data = np.frombuffer(records.tobytes(), np.uint8)
  return np.logical_not(data.reshape(len(records), records.itemsize).any(axis=1))
