"""The rows outside the window in a folder that all processes share, divided among any number of them.

The folder of process p is `process-p` in a run that always had its number of processes. Where that number
changes at checkpoint S, the processes read their new shares from the old folders, as they were at S, and
write folders `process-p-of-P-from-S`. A partition counts once every process has finished its folder; until
then the old one does. It stays until no checkpoint before S is kept. So the checkpoint of a step is held by
the last partition that began up to it, and partitions that began later are of steps that were given up.
"""
import dataclasses
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils

from conic_jax.errors import UserError
from conic_jax.memories import sealed
from conic_jax.memories.delayed import Rates, read_rates, write_rates
from conic_jax.memories.host import HostSettings
from conic_jax.memories.journal import REMEDY
from conic_jax.memories.row_store import Layout, Store, Written
from conic_jax.memories.store import closed_store, open_store, shortage

SETTINGS = 'settings.json'
_FOLDER = re.compile(r'process-(\d+)(-of-\d+-from-(\d+))?')


class Partition(NamedTuple):
  """A division of the rows among processes.

  Attributes:
    processes: how many.
    begun: as in `Layout`.
  """
  processes: int
  begun: int | None

  @property
  def first_step(self) -> int:
    """The first checkpoint that it may hold."""
    return self.begun or 0

  def layouts(self, layout: Layout) -> list[Layout]:
    """The layout of each of its processes, for the same rows."""
    return [dataclasses.replace(layout, process_index=index, process_count=self.processes, begun=self.begun)
            for index in range(self.processes)]


class StoreFolder:
  """The folder of a run, as one process uses it: `begin` or `check` comes first, then the others.

  Attributes:
    layout: of this process's rows.
  """

  def __init__(self, settings: HostSettings, kind: str, layout: Layout, depends_on: Mapping[str, Any]):
    self._settings, self._kind, self._depends_on = settings, kind, depends_on
    self._folder, self.layout = settings.folder, layout
    self._source: Partition | None = None
    self._done, self._old = 0, False

  def begin(self) -> None:
    """Clears what another run left."""
    begin_folder(self._folder, self._depends_on)

  def check(self, step: int, done: int) -> None:
    """Finds the rows of a checkpoint. Nothing is changed.

    Args:
      step: the checkpoint.
      done: how many rates must be there.

    Raises:
      UserError: if the folder is missing or damaged, or settings that stored rows depend on have changed.
    """
    self._done, self._old = done, _check_settings(self._folder, self._depends_on) == 1
    if self._kind != 'device':
      held = _holding(self._folder, self.layout, step)
      if held.processes == self.layout.process_count:
        self.layout = held.layouts(self.layout)[self.layout.process_index]
      else:
        self._source = held
    read_rates(self._known_rates, done, self._old)

  def open(self, step: int | None) -> Store:
    """Opens this process's store; None for a new run.

    Raises:
      UserError: as `open_store`, and if the disk is too small.
    """
    if self._source is None or step is None:
      check_room(self._settings, self._kind, self.layout)
      return open_store(self._kind, self._folder, self.layout, step)
    return self._divided_anew(self._source, step)

  def rates(self, *, momentum: float, weight_decay: float) -> Rates:
    """Opens the learning rates so far; all processes know the same."""
    return Rates(self._rates, self._done, momentum=momentum, weight_decay=weight_decay, old=self._old)

  def sync(self, step: int, kept: Sequence[int]) -> None:
    """Removes partitions of which no checkpoint is kept, before that of this step is saved."""
    if self.layout.process_index == 0:
      own = Partition(self.layout.process_count, self.layout.begun)
      names = {part.name for part in own.layouts(self.layout)}
      superseded = min([step, *kept]) >= own.first_step
      _remove([path for path, begun in _folders(self._folder)
               if path.name not in names and (superseded or (begun or 0) >= own.first_step)])

  @property
  def _rates(self):
    return self._folder / f'rates-{self.layout.process_index}'

  @property
  def _known_rates(self):
    return self._folder / 'rates-0' if self._source else self._rates

  def _divided_anew(self, source, step):
    """A new store of this process, with its share of the rows of another partition."""
    layout = Partition(self.layout.process_count, step).layouts(self.layout)[self.layout.process_index]
    parts = [closed_store(self._kind, self._folder, part) for part in source.layouts(layout)]
    check_room(self._settings, self._kind, layout, beside=[part.folder for part in parts])
    if self._done and self._rates != self._known_rates:
      write_rates(self._rates, read_rates(self._known_rates, self._done, self._old))
    store = closed_store(self._kind, self._folder, layout)
    store.fill(step, _share_of(parts, layout, step))
    self.layout = layout
    return store


def check_room(settings: HostSettings, kind: str, layout: Layout, beside: Sequence[Path] = ()) -> None:
  """Raises a UserError if the disk is too small for the run's store; `beside`, folders in it that stay."""
  lacking = shortage(settings.folder, kind, layout, settings.last_step * settings.batch_size,
                     settings.save_every * settings.batch_size, settings.keep, beside)
  if lacking:
    raise UserError(lacking)


def _share_of(parts: Sequence[Store], layout: Layout, step: int) -> Iterator[Written]:
  """A process's rows as closed stores that divided all rows otherwise held them at a checkpoint."""
  for part in parts:
    start, stop = (max(part.layout.ids.start, layout.ids.start), min(part.layout.ids.stop, layout.ids.stop))
    if start < stop:
      yield from part.written_at(step, range(start, stop))


def begin_folder(folder: Path, settings: Mapping[str, Any]) -> None:
  """Clears leftovers of another run and records what the stored rows depend on."""
  if jax.process_index() == 0:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sealed.write(folder / SETTINGS, settings)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('the store is empty')


def differences_from(saved: Mapping[str, Any], settings: Mapping[str, Any], folder: Any) -> None:
  """Raises a UserError if settings that the stored rows of a folder depend on have changed."""
  differences = [f'config.classifier.{name} was {saved.get(name)!r}, is {value!r}'
                 for name, value in settings.items() if saved.get(name) != value]
  if differences:
    raise UserError(f'The rows of {folder} were left by a run with other settings: {"; ".join(differences)}. '
                    'Go back to those settings, or set config.run to another folder.')


def _check_settings(folder, settings):
  """The version of the folder's files, if its settings are there and the same."""
  path = folder / SETTINGS
  if not path.is_file():
    raise UserError(f'{folder} holds no store of the rows that the checkpoint needs: bring the folder back, '
                    'or set config.run to another one to begin anew.')
  saved = sealed.read(path)
  differences_from(saved, settings, folder)
  return saved['version']


def _holding(folder, layout, step):
  """The partition that holds a checkpoint: the last that began up to it; of two, that of `layout`.

  Raises:
    UserError: if there are some and none is whole. A partition that the run began with, with the number of
      processes of `layout`, passes: its stores tell more of what is missing.
  """
  own = Partition(layout.process_count, None)
  found = sorted(_found(folder), key=lambda one: (one.first_step, one.begun is not None,
                                                  one.processes == own.processes))
  missing = {one: [] if one == own else _missing(folder, one, layout)
             for one in found if one.first_step <= step}
  if not missing:
    return own
  whole = [one for one, paths in missing.items() if not paths]
  if not whole:
    first = list(missing.values())[-1][0]
    raise UserError(f'{first} is missing, and the checkpoint needs its rows: {REMEDY}')
  return whole[-1]


def _folders(folder):
  """(path, when its partition began) of the folders of processes."""
  matches = [(path, _FOLDER.fullmatch(path.name)) for path in sorted(folder.glob('process-*'))]
  return [(path, int(match[3]) if match[3] else None) for path, match in matches if match]


def _found(folder):
  """The partitions in a folder, whole or not."""
  stated = [(path / 'store.json', begun) for path, begun in _folders(folder)]
  return {Partition(sealed.read(path)['process_count'], begun) for path, begun in stated if path.is_file()}


def _missing(folder, partition, layout):
  """What a partition lacks, as one does that was not finished."""
  paths = [folder / part.name / 'store.json' for part in partition.layouts(layout)]
  return [path for path in paths if not path.is_file()]


def _remove(folders):
  """Removes partitions, which are whole no more before the first of their rows is gone."""
  for folder in folders:
    (folder / 'store.json').unlink(missing_ok=True)
  for folder in folders:
    shutil.rmtree(folder, ignore_errors=True)
