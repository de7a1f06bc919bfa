"""Ctrl-C, SIGTERM and SIGHUP, deferred to the next step boundary."""
import contextlib
import signal
import threading
from collections.abc import Iterator

from conic_jax.ending import STOP_SIGNALS, SecondSignal
from conic_jax.errors import Stopped
from conic_jax.hardware.agreement import AGREEMENT


class StopRequest:
  """Ctrl-C, SIGTERM and SIGHUP: deferred inside `deferred`; immediate elsewhere or the second time.

  After a second signal the process ends within seconds, even if the main thread hangs. SIGHUP stays ignored
  where it was, as under nohup. Outside the main thread, signals keep their handlers.
  """

  def __init__(self):
    self.received: signal.Signals | None = None
    self._waits = False
    self._second = SecondSignal()

  def __enter__(self) -> 'StopRequest':
    self._before = {}
    if threading.current_thread() is threading.main_thread():
      self._before = {number: signal.signal(number, self._handle)
                      for number in STOP_SIGNALS if not _stays_ignored(number)}
    self._second.__enter__()
    return self

  def __exit__(self, *_) -> None:
    self._second.__exit__()
    for number, handler in self._before.items():
      # None: the handler was not Python's and cannot be put back.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)

  @contextlib.contextmanager
  def deferred(self) -> Iterator[None]:
    """Defers signals: the loop asks `agreed` after every step.

    Raises:
      Stopped: at the end, after a signal for which no step was left.
    """
    self._waits = True
    try:
      yield
    finally:
      self._waits = False
    agreement = AGREEMENT.get()
    if late := self.received or (agreement and agreement.told):
      raise Stopped(signal.Signals(late), 'stopped after the last step; the checkpoints so far are kept')

  def _handle(self, number: int, _) -> None:
    again, self.received = self.received, signal.Signals(number)
    if again is not None or not self._waits:
      raise Stopped(self.received, 'stopped at once; the checkpoints so far are kept')

  def agreed(self) -> signal.Signals | None:
    """The signal to stop for after this step; the processes of a cluster stop after the same one."""
    if (agreement := AGREEMENT.get()) is None:
      return self.received
    told = agreement.pass_point(self.received or 0)
    return signal.Signals(told) if told else None


def _stays_ignored(number: signal.Signals) -> bool:
  return number.name == 'SIGHUP' and signal.getsignal(number) == signal.SIG_IGN
