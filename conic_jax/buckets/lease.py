"""One command at a time writes to a run in a bucket, which has no locks."""
import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conic_jax.buckets.bucket import in_words
from conic_jax.errors import UserError

if TYPE_CHECKING:
  from etils import epath

NAME = '.lock'
# Seconds between two beats, and those without one after which a command counts as gone. Only this machine's
# clock is read.
_BEAT, _GONE = 10.0, 30.0


class Lease:
  """A folder in a bucket that this command alone writes to, until it is closed.

  An object in the folder says who has it, and changes with every beat. A command that finds one of another
  machine waits for its next beat; without one it takes the folder over.

  Args:
    folder: the folder.
    field: the setting that names it, for messages.
    say: shows a line.
    beat: seconds between two beats.
    gone: seconds without a beat after which a command counts as gone.

  Raises:
    UserError: if another command has the folder, or it cannot be written.
  """

  def __init__(self, folder: 'epath.Path', field: str, say: Callable[[str], None], beat: float = _BEAT,
               gone: float = _GONE):
    self._path, self._beats, self._beat = folder / NAME, 0, beat
    self._me = {'id': uuid.uuid4().hex, 'host': socket.gethostname(), 'process': os.getpid(),
                'since': time.strftime('%Y-%m-%d %H:%M:%S')}
    self._ended = threading.Event()
    self.lost: str | None = None
    with in_words(folder, field):
      if (holder := self._holder()) and not _is_gone(holder):
        say(f'{folder} is in use by {_words(holder)}: waiting {gone:.0f} seconds for a sign of life.')
        if self._beats_again(holder, gone):
          raise UserError(f"{field} is '{folder}', which is in use by {_words(holder)}: wait until it ends, "
                          'or give another folder.')
      self._write()
    self._thread = threading.Thread(target=self._run, name='lease', daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Lets other commands have the folder."""
    self._ended.set()
    self._thread.join()
    if self.lost is None:
      with contextlib.suppress(Exception):
        self._path.unlink()

  def _run(self) -> None:
    while not self._ended.wait(self._beat):
      with contextlib.suppress(Exception):  # The network may be back for the next beat.
        holder = self._holder()
        if holder and holder.get('id') != self._me['id']:
          self.lost = f'{self._path.parent} was taken over by {_words(holder)}'
          return
        self._write()

  def _write(self) -> None:
    self._beats += 1
    self._path.write_text(json.dumps({**self._me, 'beats': self._beats}))

  def _holder(self) -> dict[str, Any] | None:
    try:
      holder = json.loads(self._path.read_text())
    except (FileNotFoundError, ValueError):
      return None
    return holder if isinstance(holder, dict) else None

  def _beats_again(self, holder: dict[str, Any], within: float) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
      time.sleep(min(1.0, within / 10))
      found = self._holder()
      if found is None:
        return False
      if found != holder:
        return True
    return False


def _is_gone(holder: dict[str, Any]) -> bool:
  """Whether a command was one of this machine that has ended."""
  if holder.get('host') != socket.gethostname() or not Path('/proc/self').exists():
    return False
  return not Path('/proc', str(holder.get('process'))).exists()


def _words(holder: dict[str, Any]) -> str:
  return f"process {holder.get('process')} on {holder.get('host')} since {holder.get('since')}"
