"""Stores of the classifier's rows outside the window: in host memory or on disk."""
import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from conic_jax.errors import UserError
from conic_jax.memories.disk_store import DiskStore
from conic_jax.memories.host_store import HostStore
from conic_jax.memories.row_store import Layout, Store, readable

_PAGE = 4096  # Bytes: the least that a file system allocates for a record in a sparse file.


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
  store = closed_store(kind, folder, layout)
  store.open(step)
  return store


def closed_store(kind: str, folder: Path, layout: Layout) -> Store:
  """A store before it is opened, as `open_store`.

  Raises:
    UserError: for an unknown kind.
  """
  kinds = {store.kind: store for store in (HostStore, DiskStore)}
  if kind not in kinds:
    raise UserError(f"There is no store '{kind}'; available: {', '.join(kinds)}.")
  return kinds[kind](folder, layout)


def shortage(folder: Path, kind: str, layout: Layout, rows_written: int, rows_between_checkpoints: int,
             keep: int, beside: Sequence[Path] = ()) -> str | None:
  """What the disk lacks for the run's store, which all processes share.

  Args:
    folder: the run's store; it need not exist yet.
    kind: 'host' or 'disk'.
    layout: the layout of the rows.
    rows_written: row writes of the whole run, repeats included.
    rows_between_checkpoints: row writes from one checkpoint to the next.
    keep: number of checkpoints kept.
    beside: folders in it that stay beside the store.

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
  held = _held(folder) - sum(map(_held, beside))
  existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
  free = shutil.disk_usage(existing).free
  if needed <= held + free:
    return None
  return (f'{folder} needs {readable(needed)} for the rows that this run will keep there, and its disk has '
          f'{readable(held + free)} for them: free room, set config.run to a folder of a larger disk, or '
          f'keep fewer checkpoints (config.checkpoint.keep is {keep}).')


def _held(folder: Path) -> int:
  """Bytes on disk of the files below a folder."""
  held = 0
  for path in folder.rglob('*'):
    with contextlib.suppress(FileNotFoundError):  # Another process may be changing them.
      held += path.stat().st_blocks * 512
  return held
