"""Ends a process that hangs in a step: a collective, a device or a disk that never answers."""
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

# Looks at a step until it counts as hung.
_LOOKS = 20


class Watchdog:
  """Notices that no step ends. Only time between `feed` and `pause` counts, and none that the process slept.

  Args:
    hung_after: seconds without a step.
    on_hang: called once, with these seconds, in a thread.
  """

  def __init__(self, hung_after: float, on_hang: Callable[[float], None]):
    self._hung_after, self._on_hang = hung_after, on_hang
    self._numbers = itertools.count()
    self._step: int | None = None

  def feed(self) -> None:
    """Begins a step."""
    self._step = next(self._numbers)

  def pause(self) -> None:
    """Stops counting until the next step begins."""
    self._step = None

  def look(self, ended: threading.Event) -> None:
    """Looks at the steps until `ended` is set or one hangs."""
    looks, before = 0, None
    while not ended.wait(self._hung_after / _LOOKS):
      step = self._step
      looks = looks + 1 if step is not None and step == before else 0
      before = step
      if looks == _LOOKS:
        self._on_hang(self._hung_after)
        return


# That of this process.
WATCHDOG: ContextVar[Watchdog | None] = ContextVar('watchdog', default=None)


@contextlib.contextmanager
def watched(hung_after: float, on_hang: Callable[[float], None]) -> Iterator[None]:
  """Watches the steps in a block, as `Watchdog`; not if `hung_after` is 0."""
  if not hung_after:
    yield
    return
  watchdog, ended = Watchdog(hung_after, on_hang), threading.Event()
  threading.Thread(target=watchdog.look, args=(ended,), name='watchdog', daemon=True).start()
  token = WATCHDOG.set(watchdog)
  try:
    yield
  finally:
    WATCHDOG.reset(token)
    ended.set()


@contextlib.contextmanager
def stepping() -> Iterator[Watchdog]:
  """The watchdog, for a block of steps; nothing counts after it."""
  watchdog = WATCHDOG.get() or Watchdog(0.0, lambda seconds: None)
  try:
    yield watchdog
  finally:
    watchdog.pause()
