"""Stores of the classifier's rows outside the window: in host memory or on disk.

Each process stores its own share of the rows. A store can be restored to every kept checkpoint of the run,
and only to these. One thread may write while another reads other rows.
"""
import abc
import contextlib
import dataclasses
import itertools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conic_jax.errors import UserError
from conic_jax.memories import journal, sealed
from conic_jax.memories.journal import REMEDY
from conic_jax.memories.row_file import RowFile

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
    return {'kind': self.kind, **dataclasses.asdict(self.layout)}

  def _write_identity(self) -> None:
    sealed.write(self.folder / 'store.json', self._identity())
    for folder in (self.folder, *self.folder.absolute().parents[:2]):  # All that may be new.
      journal.sync_folder(folder)

  def _check_identity(self) -> int:
    """The version of the store's files.

    Raises:
      UserError: names each difference from the run that created the store.
    """
    path = self.folder / 'store.json'
    if not path.is_file():
      raise UserError(f'{self.folder} holds no store of the rows that the checkpoint needs: {REMEDY}')
    saved = sealed.read(path)
    if saved['version'] not in (1, sealed.VERSION):
      raise UserError(f'{path} is of version {saved["version"]}, which this conic_jax cannot read: install '
                      'the one that the run began with.')
    differences = [f'{name} was {saved.get(name)!r}, is {value!r}'
                   for name, value in self._identity().items() if saved.get(name) != value]
    if differences:
      raise UserError(f'The store {self.folder} does not fit this run: {"; ".join(differences)}. Go back '
                      'to those settings, or set config.run to another folder.')
    return saved['version']

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
    version = self._check_identity()
    dumps = self._steps('host-')
    if step not in dumps:
      raise self._not_kept(step, list(dumps))
    try:
      blocks = self._blocks(dumps[step])
    except journal.Damaged as error:
      raise UserError(f'{error.problem}: {self._way_back(step, dumps)}') from None
    for entries in blocks:
      self._records[entries['place']] = entries['record']
    self._clear('*.new')
    if version != sealed.VERSION:
      self._write_identity()

  def _blocks(self, dump):
    blocks = journal.read(dump, self._entry, old=self._entry).blocks
    if not blocks or len(blocks[-1]):
      raise journal.Damaged(f'{dump} is cut short')
    return blocks

  def _way_back(self, step, dumps):
    """How to repair a damaged copy: go back to an older one that is whole."""
    for older, path in reversed(dumps.items()):
      with contextlib.suppress(UserError):
        if older < step and self._blocks(path):
          return _go_back(older, f'{path.name} is whole')
    return REMEDY

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
  a checkpoint or the opening of the store. Checksums are journalled with their records.

  Files: `rows` and `rows.sums`, as in `row_file`; `journal-S`, the old value of each record at each write
  after step S, oldest first, with its checksum in `rows.sums`. A store of version 1, which had no
  `rows.sums`, is brought to version 2 as it is opened.
  """
  kind = 'disk'

  def __init__(self, folder: Path, layout: Layout, step: int | None):
    super().__init__(folder, layout)
    self._rows = RowFile(self.folder / 'rows', layout.ids, layout.dim)
    self._old_entry = np.dtype([('place', '<i8'), ('record', self._rows.record)])
    self._entry = np.dtype([('place', '<i8'), ('sum', '<u4'), ('record', self._rows.record)])
    self._is_old = False
    with self._writing(), contextlib.ExitStack() as on_failure:
      on_failure.callback(self._rows.close)
      if step is None:
        self._create()
      else:
        self._restore(step)
      self._journal = self._new_journal(step or 0)
      if step is None or self._is_old:
        self._write_identity()
      self._is_old = False
      on_failure.pop_all()

  def _create(self):
    self.folder.mkdir(parents=True, exist_ok=True)
    self._clear('store.json', 'rows', 'rows.sums', 'journal-*', '*.new')
    self._rows.create()
    self._rows.open()

  def _restore(self, step):
    """Checks all that it will use before it changes anything."""
    self._is_old = self._check_identity() == 1
    steps = self._steps('journal-')
    if step not in steps:
      raise self._not_kept(step, list(steps))
    self._rows.check(with_sums=not self._is_old)
    newer = {number: path for number, path in steps.items() if number >= step}
    undone = self._contents(newer)
    self._clear('*.new')
    self._rows.open(with_sums=not self._is_old)
    self._undo(undone, list(newer.values()))
    if self._is_old:
      self._bring_up_to_date({number: path for number, path in steps.items() if number < step}, step)

  def _contents(self, journals):
    """What journals hold that follow one another up to the last: their blocks, oldest first."""
    numbers, blocks = list(journals), []
    old = self._old_entry if self._is_old else None
    for path, follower in zip(journals.values(), [*numbers[1:], journal.NONE], strict=True):
      read = journal.read(path, self._entry, follower == journal.NONE, old)
      if read.follower not in (follower, journal.NONE):
        raise UserError(f'{self.folder / f"journal-{read.follower}"} is missing: {REMEDY}')
      blocks += read.blocks
    return blocks

  def _undo(self, blocks, journals):
    """Restores the records; if interrupted anywhere, it can be restarted for this or an older step."""
    for entries in reversed(blocks):
      self._rows.overwrite(entries['place'], entries['record'], _sums(entries))
    self._rows.sync()
    for before, path in reversed(list(itertools.pairwise(journals))):
      journal.unfollow(before)
      path.unlink()
      journal.sync_folder(self.folder)  # No journal may outlive an older one.

  def _bring_up_to_date(self, older, step):
    """Makes the checksums of a store of version 1, and those in its older journals."""
    self._rows.close()
    self._rows.add_sums()
    self._rows.open()
    for path, follower in zip(older.values(), [*older, step][1:], strict=True):
      with contextlib.suppress(UserError):  # A damaged one is told where it is needed.
        blocks = journal.read(path, self._entry, old=self._old_entry).blocks
        with contextlib.closing(journal.Journal(path)) as new:
          for entries in blocks:
            new.append(self._entries(entries['place'], entries['record'], _sums(entries)))
          new.follow(follower)
          new.publish()

  def read(self, ids: np.ndarray) -> Stored:
    places = self._places(ids)
    records, sums = self._rows.fetch(places)
    sound = self._rows.sound(places, records, sums)
    if not sound.all():
      place = places[~sound][0]
      raise UserError(f'{self._rows.path} or its checksums are damaged at instance '
                      f'{place + self.layout.ids.start}: {self._way_back(place)}')
    return _stored(records)

  def write(self, ids: np.ndarray, rows: np.ndarray, seen: np.ndarray) -> None:
    places = self._places(ids)
    records = _records(self._rows.record, rows, seen)
    records['crc'] = self._rows.checksums(places, records)
    with self._writing():
      self._journal.append(self._entries(places, *self._rows.fetch(places)))
      self._rows.overwrite(places, records, records['crc'])

  def checkpoint(self, step: int, kept: Sequence[int]) -> None:
    with self._writing():
      self._rows.sync()
      before, self._journal = self._journal, self._new_journal(step)
      with contextlib.closing(before):
        before.follow(step)
      for number, path in self._steps('journal-').items():
        if number < min([step, *kept]):
          path.unlink()

  def close(self) -> None:
    self._journal.close()
    self._rows.close()

  def _new_journal(self, step):
    new = journal.Journal(self.folder / f'journal-{step}')
    new.publish()
    return new

  def _entries(self, places, records, sums):
    entries = np.empty(len(places), self._entry)
    entries['place'], entries['record'], entries['sum'] = places, records, sums
    return entries

  def _way_back(self, place):
    """How to repair a damaged row: a journal may hold it as it was at a checkpoint."""
    steps = self._steps('journal-')
    with contextlib.suppress(UserError):
      for step, path in reversed(steps.items()):
        blocks = journal.read(path, self._entry, torn=step == max(steps)).blocks
        held = [entries[entries['place'] == place] for entries in blocks]
        first = next((entries[:1] for entries in held if len(entries)), None)
        if first is not None and self._rows.sound(first['place'], first['record'], first['sum']).all():
          if step == max(steps):
            return f'run the same command again to go on from the last checkpoint: {path.name} holds the row.'
          return _go_back(step, f'{path.name} holds the row')
    return REMEDY


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
    taken = lambda size: min(layout.num_instances * size, different * (size + _PAGE))
    journals = (keep + 1) * min(rows_written, rows_between_checkpoints) * (record + 12)
    needed = taken(record) + taken(4) + journals
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


def _sums(entries: np.ndarray) -> np.ndarray:
  """The checksums of journalled records: uint32 [k]. Version 1 had only those in the records."""
  return entries['sum'] if 'sum' in (entries.dtype.names or ()) else entries['record']['crc']


def _go_back(step: int, reason: str) -> str:
  """How to go on from the checkpoint of an earlier step."""
  return (f"move the checkpoints after step {step} out of the run's folder and run the same command again: "
          f'{reason}.')
