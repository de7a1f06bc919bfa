"""Ctrl-C and SIGTERM, deferred to the next step boundary."""
import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from conic_jax.errors import Stopped


class StopRequest:
  """Ctrl-C and SIGTERM: deferred inside `deferred`; immediate elsewhere or the second time."""

  def __init__(self):
    self.received: signal.Signals | None = None
    self._waits = False

  def __enter__(self) -> 'StopRequest':
    self._before = {}
    if threading.current_thread() is threading.main_thread():
      self._before = {number: signal.signal(number, self._handle)
                      for number in (signal.SIGINT, signal.SIGTERM)}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  @contextlib.contextmanager
  def deferred(self) -> Iterator[None]:
    """Defers signals: the loop asks `agreed` after every step."""
    self._waits = True
    try:
      yield
    finally:
      self._waits = False

  def _handle(self, number: int, _) -> None:
    again, self.received = self.received, signal.Signals(number)
    if again is not None or not self._waits:
      raise Stopped(self.received, 'stopped at once; the checkpoints so far are kept')

  def agreed(self, now: bool) -> signal.Signals | None:
    """The signal to stop for; several processes agree on it at reports, if any of them received one."""
    if jax.process_count() == 1:
      return self.received
    if not now:
      return None
    told = int(multihost_utils.process_allgather(np.int32(self.received or 0)).max())
    return signal.Signals(told) if told else None
