"""Ends a process whose main thread may hang: at the second signal, or when it cannot go on."""
import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from conic_jax.errors import Stopped

# Signals that ask a process to stop; a terminal that closes sends SIGHUP, which not every system has.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP')
                     if hasattr(signal, name))
# Exit code of a process that could not go on, but whose command can: EX_TEMPFAIL of sysexits.h.
LOST = 75
# Seconds between the second signal and the end, for what the main thread can still close: for a run, and for
# the command around it, which leaves the last words to the run.
_CLOSING, _CLOSING_COMMAND = 5.0, 6.0
# Seconds that the last words may take: the terminal may have stopped reading.
_SPEAKING = 2.0


def end_at_once(line: str, code: int, stacks: bool = False) -> NoReturn:
  """Says one line on stderr and ends the process, whatever its threads do; nothing is closed.

  Args:
    line: the line.
    code: the exit code.
    stacks: whether all threads' stacks come before the line.
  """
  speaker = threading.Thread(target=_speak, args=(line, stacks), daemon=True)
  speaker.start()
  speaker.join(_SPEAKING)
  os._exit(code)


def _speak(line: str, stacks: bool) -> None:
  # A progress bar may have left the cursor in its line.
  start = '\n' if sys.stderr is not None and sys.stderr.isatty() else ''
  with contextlib.suppress(OSError):
    if stacks:
      os.write(2, start.encode())
      faulthandler.dump_traceback(2)
    os.write(2, f'{start}{line}\n'.encode(errors='replace'))
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()


def naming_checkpoint(last_checkpoint: Callable[[], str | None]) -> str:
  """A sentence that names the last good checkpoint, after a space; '' if its folder does not answer."""
  found: list[str] = []

  def look() -> None:
    with contextlib.suppress(Exception):  # Of a bucket any.
      found.extend(filter(None, [last_checkpoint()]))

  looking = threading.Thread(target=look, daemon=True)
  looking.start()
  looking.join(_SPEAKING)
  return f' The last good checkpoint is {found[0]}.' if found else ''


def end_hung(hung_after: float, last_checkpoint: Callable[[], str | None]) -> NoReturn:
  """Ends a process of its own whose step hangs, with its threads' stacks."""
  end_at_once(f'conic_jax: A step did not end within {hung_after:g} s; the stacks above say where it hangs.'
              f'{naming_checkpoint(last_checkpoint)} Start the same command again to go on.', LOST,
              stacks=True)


class SecondSignal:
  """Ends the process soon after its second stop signal, even if the main thread hangs outside Python.

  Python runs its handlers in the main thread, between two of its instructions. The wakeup descriptor is
  written at once, so a thread that reads it counts the signals. Does nothing outside the main thread.

  Attributes:
    count: stop signals received.
    last: the last of them.
  """

  def __init__(self, closing: float = _CLOSING):
    self.count, self._closing = 0, closing
    self.last: signal.Signals | None = None
    self._closed = threading.Event()
    self._before = self._writer = -1

  def __enter__(self) -> 'SecondSignal':
    if threading.current_thread() is threading.main_thread():
      reader, self._writer = os.pipe()
      os.set_blocking(self._writer, False)
      self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
      threading.Thread(target=self._listen, args=(reader,), name='second signal', daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    if self._writer == -1:
      return
    if (current := signal.set_wakeup_fd(self._before)) != self._writer:
      signal.set_wakeup_fd(current)  # Somebody has replaced it since.
    self._closed.set()
    os.close(self._writer)
    self._writer = -1

  def _listen(self, reader: int) -> None:
    while numbers := os.read(reader, 64):
      for number in numbers:
        if number in STOP_SIGNALS:
          self.count, self.last = self.count + 1, signal.Signals(number)
        if self.count == 2:
          threading.Thread(target=self._end, args=(number,), name='end', daemon=True).start()
      if self._before != -1:
        with contextlib.suppress(OSError):
          os.write(self._before, numbers)
    os.close(reader)

  def _end(self, number: int) -> None:
    if not self._closed.wait(self._closing):
      name = signal.Signals(number).name
      end_at_once(f'conic_jax: {name} again: ended without waiting for anything; the checkpoints so far are '
                  'kept.', 128 + number)


def end_while_starting() -> None:
  """Ends the process with a line at a stop signal, until a command begins: for the seconds of its imports."""
  for number in STOP_SIGNALS:
    if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
      signal.signal(number, _end_while_starting)


def _end_while_starting(number: int, frame: Any) -> NoReturn:
  end_at_once(f'conic_jax: {signal.Signals(number).name}: stopped before anything began.', 128 + number)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
  """Raises `Stopped` for SIGTERM and SIGHUP, which end Python without a word, unless they are ignored."""
  def stop(number: int, frame: Any) -> NoReturn:
    raise Stopped(signal.Signals(number), 'stopped')
  before = {}
  if threading.current_thread() is threading.main_thread():
    if signal.getsignal(signal.SIGINT) is _end_while_starting:
      signal.signal(signal.SIGINT, signal.default_int_handler)
    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS
              if signal.getsignal(number) in (signal.SIG_DFL, _end_while_starting)}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, signal.SIG_DFL if handler is _end_while_starting else handler)


@contextlib.contextmanager
def process_ends_at_the_second_signal() -> Iterator[SecondSignal]:
  """`SecondSignal` for a command; once a signal has come, until the process ends."""
  second = SecondSignal(_CLOSING_COMMAND)
  second.__enter__()
  try:
    yield second
  finally:
    if not second.count:
      second.__exit__()
