"""The store of rows in host memory."""
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from conic_jax.errors import UserError
from conic_jax.memories import journal, sealed
from conic_jax.memories.journal import REMEDY
from conic_jax.memories.row_store import (
  Layout,
  Store,
  Stored,
  Written,
  go_back,
  readable,
  records_of,
  stored_of,
)

_DUMP_BLOCK = 16384  # Rows.


class HostStore(Store):
  """Rows in host memory, allocated as they are first written; each checkpoint is a copy of them all.

  A copy gets its name once it is complete on disk: a crash of the process or the machine at any moment leaves
  the earlier copies intact.
  """
  kind = 'host'

  def __init__(self, folder: Path, layout: Layout):
    super().__init__(folder, layout)
    record = np.dtype([('time', '<i8'), ('row', '<f4', (2, layout.dim))])
    self._entry = np.dtype([('place', '<i8'), ('record', record)])
    self._records = np.zeros(0, record)

  def open(self, step: int | None) -> None:
    self._allocate()
    with self._writing():
      if step is None:
        self._forget('host-*')
        self._write_identity()
      else:
        self._restore(step)

  def fill(self, step: int, rows: Iterable[Written]) -> None:
    self._allocate()
    with self._writing():
      self._forget('host-*', '*.new')
    for block in rows:
      self.write(*block)
    self.checkpoint(step, [])
    with self._writing():
      self._write_identity()

  def written_at(self, step: int, ids: range) -> Iterator[Written]:
    self._check_identity()
    for entries in self._dump(step):
      names = entries['place'] + self.layout.ids.start
      wanted = (names >= ids.start) & (names < ids.stop)
      stored = stored_of(entries['record'][wanted])
      yield Written(names[wanted], stored.rows, stored.seen)

  def _allocate(self):
    count = len(self.layout.ids)
    try:
      self._records = np.zeros(count, self._records.dtype)
    except MemoryError:
      raise UserError(f'The rows of process {self.layout.process_index} need '
                      f'{readable(count * self._records.itemsize)} of host memory: '
                      "set config.classifier.store to 'disk', or use more hosts.") from None

  def _restore(self, step):
    version = self._check_identity()
    for entries in self._dump(step):
      self._records[entries['place']] = entries['record']
    self._clear('*.new')
    if version != sealed.VERSION:
      self._write_identity()

  def _dump(self, step):
    """The blocks of the copy of a step."""
    dumps = self._steps('host-')
    if step not in dumps:
      raise self._not_kept(step, list(dumps))
    try:
      return self._blocks(dumps[step])
    except journal.Damaged as error:
      raise UserError(f'{error.problem}: {self._way_back(step, dumps)}') from None

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
          return go_back(older, f'{path.name} is whole')
    return REMEDY

  def read(self, ids: np.ndarray) -> Stored:
    return stored_of(self._records[self._places(ids)])

  def write(self, ids: np.ndarray, rows: np.ndarray, seen: np.ndarray) -> None:
    self._records[self._places(ids)] = records_of(self._records.dtype, rows, seen)

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
