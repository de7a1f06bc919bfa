"""The folder of a run: that it is a run's, and that one command at a time writes to it."""
import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from conic_jax import __version__
from conic_jax.errors import UserError, listed
from conic_jax.run.json_file import write_json

# Says that a folder is a run's, and how its files are laid out.
MARKER = 'conic_jax.json'
FORMAT = 1
_LOCK = '.lock'
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


class Claim:
  """A run's folder that this process alone may write to, until it is closed or the process ends."""

  def __init__(self, folder: Path, lock: IO[str]):
    self._folder, self._lock = folder, lock

  def close(self) -> None:
    """Lets other commands have the folder; removes it if the run made nothing."""
    with self._lock, contextlib.suppress(OSError):
      if {path.name for path in self._folder.iterdir()} <= {_LOCK, MARKER}:
        for name in (MARKER, _LOCK):
          (self._folder / name).unlink(missing_ok=True)
        self._folder.rmdir()


def claim_folder(folder: Path, field: str, log: Callable[[str], None]) -> Claim:
  """Creates a run's folder if there is none, marks it, and locks it.

  Args:
    folder: new, empty, or a run's.
    field: the setting that names it, for messages.
    log: shows a line.

  Raises:
    UserError: if the folder is something else, is in use, or cannot be written.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    check_is_run(folder, field)
    claimed = Claim(folder, _lock(folder, field, log))
    mark(folder)
  except OSError as error:
    raise UserError(f"{field} is '{folder}', which cannot be written ({reason(error)}): free room, or give "
                    'another folder.') from error
  return claimed


def check_is_run(folder: Any, field: str) -> None:
  """Raises a `UserError` if a folder, of this machine or in a bucket, holds files and is not a run's."""
  if not folder.exists():
    return
  if not folder.is_dir():
    raise UserError(f"{field} is '{folder}', which is a file: give a folder.")
  names = sorted(path.name for path in folder.iterdir())
  if MARKER in names:
    _check_format(folder / MARKER)
  elif set(names) - {_LOCK} and not _is_older_run(folder):
    raise UserError(f"{field} is '{folder}', which is no run and holds {listed(names)}: give a folder that "
                    'is new, empty, or a run.')


def reason(error: OSError) -> str:
  """The reason of a failed file operation, in words."""
  return error.strerror or str(error)


def _is_older_run(folder: Any) -> bool:
  """Whether a folder without a marker is a run's: runs had none before format 1."""
  try:
    config = json.loads((folder / 'config.json').read_text())
  except (OSError, ValueError):
    return (folder / 'checkpoints').is_dir() and (folder / 'metrics.jsonl').exists()
  return isinstance(config, dict) and {'method', 'encoder', 'views'} <= config.keys()


def _check_format(marker: Any) -> None:
  try:
    found = json.loads(marker.read_text())['format']
  except (ValueError, KeyError, TypeError):
    return  # Half written, or damaged: its presence says enough.
  if isinstance(found, int) and found > FORMAT:
    raise UserError(f'{marker} says that this run has format {found}; conic_jax {__version__} knows formats '
                    f'up to {FORMAT}: use the newer version that wrote it.')


def mark(folder: Path) -> None:
  """Says in a folder that it is a run's."""
  marker = folder / MARKER
  if not marker.exists():
    write_json(marker, {'format': FORMAT, 'conic_jax': __version__}, indent=None)


def _lock(folder: Path, field: str, log: Callable[[str], None]) -> IO[str]:
  """Locks a folder by a file in it; the kernel frees the lock when the process ends."""
  lock = (folder / _LOCK).open('a+')
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in _NO_LOCKS:
      log(f'{folder} is on a file system without locks: make sure that no other command writes to this run.')
      return lock
    with lock:
      if error.errno not in _TAKEN:
        raise
      lock.seek(0)
      holder = lock.read().strip() or 'another command'
    raise UserError(f"{field} is '{folder}', which is in use by {holder}: wait until it ends, or give "
                    'another folder.') from None
  if not _is_named(folder / _LOCK, lock):  # A run that made nothing removed it meanwhile.
    lock.close()
    folder.mkdir(parents=True, exist_ok=True)
    return _lock(folder, field, log)
  lock.truncate(0)
  lock.write(f'process {os.getpid()} on {socket.gethostname()} since {time.strftime("%Y-%m-%d %H:%M:%S")}\n')
  lock.flush()
  return lock


def _is_named(path: Path, opened: IO[str]) -> bool:
  """Whether a path still names an opened file."""
  try:
    return os.path.samestat(path.stat(), os.fstat(opened.fileno()))
  except FileNotFoundError:
    return False
