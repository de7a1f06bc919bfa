"""The contract of the stores of the classifier's rows, and what all of them share.

Each process stores its own share of the rows. A store can be restored to every kept checkpoint of the run,
and only to these. One thread may write while another reads other rows.
"""
import abc
import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conic_jax.errors import UserError
from conic_jax.memories import journal, sealed
from conic_jax.memories.journal import REMEDY


@dataclasses.dataclass(frozen=True)
class Layout:
  """The shape of the rows, and which of them a process stores.

  Attributes:
    num_instances: N.
    dim: D.
    seed: the run's seed; rows never written are derived from it.
    process_index: p.
    process_count: P.
    begun: the checkpoint at which the rows were divided among these processes; None since the first step.
  """
  num_instances: int
  dim: int
  seed: int
  process_index: int = 0
  process_count: int = 1
  begun: int | None = None

  @property
  def ids(self) -> range:
    """The ids of this process: p ⌈N/P⌉ … (p + 1) ⌈N/P⌉ − 1, below N."""
    share = -(-self.num_instances // self.process_count)
    start = min(self.process_index * share, self.num_instances)
    return range(start, min(start + share, self.num_instances))

  @property
  def name(self) -> str:
    """The name of the process's folder, within the run's store."""
    name = f'process-{self.process_index}'
    return name if self.begun is None else f'{name}-of-{self.process_count}-from-{self.begun}'


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


class Written(NamedTuple):
  """Rows that were written.

  Attributes:
    ids: int64 [k].
    rows: float32 [k, 2, D], weights, then momentum.
    seen: int64 [k], as in `Stored`.
  """
  ids: np.ndarray
  rows: np.ndarray
  seen: np.ndarray


class Store(abc.ABC):
  """The contract, and what both kinds share. A new one is closed: `open` or `fill` opens it.

  Attributes:
    layout: the layout of the rows.
    folder: this process's folder, within the run's store.
  """
  kind: str

  def __init__(self, folder: Path, layout: Layout):
    self.layout = layout
    self.folder = folder / layout.name

  @abc.abstractmethod
  def open(self, step: int | None) -> None:
    """Restores the rows of a checkpoint.

    Args:
      step: the checkpoint; None starts with no row written, whatever the folder held.

    Raises:
      UserError: if the store is another run's, damaged, not kept for this step, or cannot be written.
    """

  @abc.abstractmethod
  def fill(self, step: int, rows: Iterable[Written]) -> None:
    """Opens a new store that holds these rows at a checkpoint, whatever the folder held.

    It is whole once `open` finds it: if this is interrupted, there is none.

    Args:
      step: the checkpoint.
      rows: rows of this process, each at most once.

    Raises:
      UserError: if the disk is full.
    """

  @abc.abstractmethod
  def written_at(self, step: int, ids: range) -> Iterator[Written]:
    """The rows that a closed store held at a checkpoint. Nothing is changed.

    Args:
      step: the checkpoint.
      ids: those wanted, all of this process.

    Raises:
      UserError: if the store is another run's, damaged, or not kept for this step.
    """

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

  def _forget(self, *patterns: str) -> None:
    """Makes way for a new store. The identity goes first: no half of the old one is taken for whole."""
    self.folder.mkdir(parents=True, exist_ok=True)
    self._clear('store.json')
    journal.sync_folder(self.folder)
    self._clear(*patterns)

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


def readable(size: int) -> str:
  return f'{size / 2**30:,.1f} GiB' if size >= 2**30 else f'{size / 2**20:,.1f} MiB'


def records_of(dtype: np.dtype, rows: np.ndarray, seen: np.ndarray) -> np.ndarray:
  records = np.zeros(len(seen), dtype)
  records['row'], records['time'] = rows, seen + 1
  return records


def stored_of(records: np.ndarray) -> Stored:
  written = records['time'] > 0
  return Stored(np.ascontiguousarray(records['row']), np.where(written, records['time'] - 1, 0), written)


def go_back(step: int, reason: str) -> str:
  """How to go on from the checkpoint of an earlier step."""
  return (f"move the checkpoints after step {step} out of the run's folder and run the same command again: "
          f'{reason}.')
