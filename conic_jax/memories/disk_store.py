"""The store of rows on disk."""
import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from conic_jax.errors import UserError
from conic_jax.memories import journal
from conic_jax.memories.journal import REMEDY
from conic_jax.memories.row_file import RowFile
from conic_jax.memories.row_store import Layout, Store, Stored, Written, go_back, records_of, stored_of

_BLOCK = 16384  # Rows read at once where all are.


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

  def __init__(self, folder: Path, layout: Layout):
    super().__init__(folder, layout)
    self._rows = RowFile(self.folder / 'rows', layout.ids, layout.dim)
    self._old_entry = np.dtype([('place', '<i8'), ('record', self._rows.record)])
    self._entry = np.dtype([('place', '<i8'), ('sum', '<u4'), ('record', self._rows.record)])
    self._is_old = False

  def open(self, step: int | None) -> None:
    with self._opening():
      if step is None:
        self._create()
      else:
        self._restore(step)
      self._journal = self._new_journal(step or 0)
      if step is None or self._is_old:
        self._write_identity()
      self._is_old = False

  def fill(self, step: int, rows: Iterable[Written]) -> None:
    with self._opening():
      self._create()
      for ids, values, seen in rows:
        places, records = self._new_records(ids, values, seen)
        self._rows.overwrite(places, records, records['crc'])
      self._rows.sync()
      self._journal = self._new_journal(step)
      self._write_identity()

  def written_at(self, step: int, ids: range) -> Iterator[Written]:
    if self._check_identity() == 1:
      raise UserError(f'{self.folder} is a store of version 1: start the run once with the '
                      f'{self.layout.process_count} processes that it has, which brings it up to date.')
    before = _Before(self._contents(self._checked(step)))
    self._rows.open()
    try:
      start, stop = (id - self.layout.ids.start for id in (ids.start, ids.stop))
      for first in range(start, stop, _BLOCK):
        places = np.arange(first, min(first + _BLOCK, stop))
        records, sums = self._rows.fetch(places)
        before.restore(places, records, sums)
        self._check(places, self._rows.sound(places, records, sums))
        written = records['time'] > 0
        stored = stored_of(records[written])
        yield Written(places[written] + self.layout.ids.start, stored.rows, stored.seen)
    finally:
      self._rows.close()

  @contextlib.contextmanager
  def _opening(self):
    with self._writing(), contextlib.ExitStack() as on_failure:
      on_failure.callback(self._rows.close)
      yield
      on_failure.pop_all()

  def _create(self):
    self._forget('rows', 'rows.sums', 'journal-*', '*.new')
    self._rows.create()
    self._rows.open()

  def _restore(self, step):
    """Checks all that it will use before it changes anything."""
    self._is_old = self._check_identity() == 1
    newer = self._checked(step)
    undone = self._contents(newer)
    self._clear('*.new')
    self._rows.open(with_sums=not self._is_old)
    self._undo(undone, list(newer.values()))
    if self._is_old:
      older = {number: path for number, path in self._steps('journal-').items() if number < step}
      self._bring_up_to_date(older, step)

  def _checked(self, step):
    """The journals since a checkpoint, if it was kept and the files have their sizes."""
    steps = self._steps('journal-')
    if step not in steps:
      raise self._not_kept(step, list(steps))
    self._rows.check(with_sums=not self._is_old)
    return {number: path for number, path in steps.items() if number >= step}

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
    self._check(places, self._rows.sound(places, records, sums))
    return stored_of(records)

  def write(self, ids: np.ndarray, rows: np.ndarray, seen: np.ndarray) -> None:
    places, records = self._new_records(ids, rows, seen)
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

  def _new_records(self, ids, rows, seen):
    """(places, records with their checksums)."""
    places = self._places(ids)
    records = records_of(self._rows.record, rows, seen)
    records['crc'] = self._rows.checksums(places, records)
    return places, records

  def _check(self, places, sound):
    if not sound.all():
      place = places[~sound][0]
      raise UserError(f'{self._rows.path} or its checksums are damaged at instance '
                      f'{place + self.layout.ids.start}: {self._way_back(place)}')

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
          return go_back(step, f'{path.name} holds the row')
    return REMEDY


class _Before:
  """What journals hold of each record: its value before they began, which is the first that they have."""

  def __init__(self, blocks: list[np.ndarray]):
    self._blocks = blocks
    self._ends = np.cumsum([len(entries) for entries in blocks])
    places = np.concatenate([np.zeros(0, np.int64), *(entries['place'] for entries in blocks)])
    self._places, self._firsts = np.unique(places, return_index=True)

  def restore(self, places: np.ndarray, records: np.ndarray, sums: np.ndarray) -> None:
    """Overwrites the records and sums of ascending places, [k] each, by what the journals hold."""
    held = slice(*np.searchsorted(self._places, [places[0], places[-1] + 1]))
    for place, first in zip(self._places[held], self._firsts[held], strict=True):
      block = np.searchsorted(self._ends, first, 'right')
      entry = self._blocks[block][first - self._ends[block]:][:1]
      index = np.searchsorted(places, place)
      records[index], sums[index] = entry['record'][0], _sums(entry)[0]


def _sums(entries: np.ndarray) -> np.ndarray:
  """The checksums of journalled records: uint32 [k]. Version 1 had only those in the records."""
  return entries['sum'] if 'sum' in (entries.dtype.names or ()) else entries['record']['crc']
