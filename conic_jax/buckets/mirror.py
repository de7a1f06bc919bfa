"""A working copy of a folder in a bucket: fetched at the start, sent back whenever its files have changed."""
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from pathlib import Path

from conic_jax.buckets.bucket import files_below, in_words, why
from conic_jax.buckets.run_folder import RunFolder

# What goes to the bucket by itself, or concerns this machine alone.
_LEFT_OUT = frozenset(('store', 'checkpoints', 'before_training', 'checksums', 'damaged', 'wandb', '.lock'))
# Seconds that the end of a run waits for the last files to be sent.
_WITHIN = 120.0


class Mirror:
  """Keeps the files of a run's folder in its bucket.

  A thread sends what has changed, so that no step waits for the network. What cannot be sent is sent with the
  next report.

  Args:
    place: the folder and its working copy.
    field: the setting that names it, for messages.
    sends: whether this process sends; of a cluster only one does.
    say: shows a line.
  """

  def __init__(self, place: RunFolder, field: str, sends: bool, say: Callable[[str], None]):
    self._place, self._field, self._sends, self._say = place, field, sends, say
    self._sent: dict[str, tuple[int, int]] = {}
    self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix='bucket')
    self._pending: Future[None] | None = None
    self._failing, self._used = False, False

  def fetch(self) -> None:
    """Makes the working copy what the bucket has: only the files of the folder itself, none of its folders.

    Raises:
      UserError: if the bucket cannot be read.
    """
    local, remote = self._place.local, self._place.remote
    assert remote is not None
    local.mkdir(parents=True, exist_ok=True)
    with in_words(remote, self._field):
      there = [path for path in remote.iterdir() if path.name not in _LEFT_OUT] if remote.exists() else []
      kept = {path.name for path in there if not path.is_dir()}
      for old in local.iterdir():
        if old.name not in _LEFT_OUT and old.is_file() and old.name not in kept:
          old.unlink()
      for path in there:
        if path.name in kept:
          (local / path.name).write_bytes(path.read_bytes())
          self._sent[path.name] = _stamp(local / path.name)

  def send(self) -> None:
    """Starts to send what has changed, unless that is waiting to be done already."""
    if self._sends and (self._pending is None or self._pending.done() or self._pending.running()):
      self._used = True
      self._pending = self._worker.submit(self._send_or_say)

  def sent(self) -> str | None:
    """Sends what has changed, and waits until it is there; returns why it is not, None if it is."""
    if not self._sends:
      return None
    self._used = True
    try:
      self._worker.submit(self._send).result(_WITHIN)
    except TookTooLong:
      return f'{self._place} takes longer than {_WITHIN:.0f} seconds'
    except Exception as error:
      return f'{self._place}, {why(error, str(self._place))}'
    return None

  def close(self) -> None:
    """Sends the last changes, unless the run has sent nothing yet: it has made nothing then.

    What cannot be sent stays in the working copy, and a line says so.
    """
    if self._used and (failure := self.sent()):
      self._say(f'Not all files of the run are in its bucket ({failure}). They are kept in '
                f'{self._place.local} until the run is started again.')
    self._worker.shutdown(wait=False, cancel_futures=True)

  def _send_or_say(self) -> None:
    try:
      self._send()
    except Exception as error:
      if not self._failing:
        self._say(f'The reports could not be sent to {self._place} ({why(error, str(self._place))}); the '
                  'training goes on, and they are sent with the next one.')
      self._failing = True
    else:
      self._failing = False

  def _send(self) -> None:
    remote = self._place.remote
    assert remote is not None
    for name, stamp in self._changed().items():
      try:
        content = (self._place.local / name).read_bytes()
      except FileNotFoundError:  # Another thread has removed it.
        continue
      (remote / name).parent.mkdir(parents=True, exist_ok=True)
      (remote / name).write_bytes(content)
      self._sent[name] = stamp
    for name in [name for name in self._sent if not (self._place.local / name).exists()]:
      with contextlib.suppress(FileNotFoundError):
        (remote / name).unlink()
      del self._sent[name]

  def _changed(self) -> dict[str, tuple[int, int]]:
    """The stamps of the files that the bucket does not have as they are."""
    local, found = self._place.local, {}
    for top in local.iterdir() if local.exists() else ():
      if top.name in _LEFT_OUT:
        continue
      for path in files_below(top) if top.is_dir() else [top]:
        name = path.relative_to(local).as_posix()
        with contextlib.suppress(FileNotFoundError):
          if path.suffix != '.tmp' and self._sent.get(name) != (stamp := _stamp(path)):
            found[name] = stamp
    return found


def _stamp(path: Path) -> tuple[int, int]:
  """What changes with a file's content."""
  stat = path.stat()
  return stat.st_mtime_ns, stat.st_size
