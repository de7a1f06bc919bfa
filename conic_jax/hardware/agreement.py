"""The processes of a cluster agree on the step at which all of them stop."""
import threading
from collections.abc import Callable
from contextvars import ContextVar

from conic_jax.hardware.place import Place

Send = Callable[[dict[str, int]], None]

# One of them is in each message.
ABOUT_STOPPING = {'stop', 'ask', 'passed', 'stop_at'}


class Agreement:
  """The point at which all processes stop after a signal to any of them.

  All processes pass the same points, one after each step, and count them; no process waits for another to
  do so. One that received a signal tells process 0, which asks everyone for their count. From then on nobody
  passes a further point until process 0 has named the one after the latest. The watch answers for a process
  whose main thread waits for a collective, so nothing that a process waits for depends on one that waits.

  Args:
    place: this process's place.
    send: sends a message from process 0 to all, itself included, or from another to process 0; does not wait.
  """

  def __init__(self, place: Place, send: Send):
    self._place, self._send = place, send
    self._changed = threading.Condition()
    self._passed = 0
    # The signal that was told of, and the point to stop at once it is known.
    self._told, self._stop_at = 0, None
    self._answers: dict[int, int] = {}
    self._asked = False

  # ---- For the main thread ----

  def pass_point(self, received: int) -> int:
    """Passes a point: the signal to stop for at this one, 0 for none.

    Args:
      received: the signal that this process received, 0 for none.
    """
    with self._changed:
      if received and not self._told:
        self._told = received
        self._send({'stop': received})
      while self._told and self._stop_at is None:
        self._changed.wait()
      self._passed += 1
      return self._told if self._passed == self._stop_at else 0

  @property
  def told(self) -> int:
    """The signal for which all will stop; 0 for none."""
    return self._told

  @property
  def stopping(self) -> bool:
    """Whether this process has come to the point where all stop."""
    return self._passed == self._stop_at

  # ---- For the watch ----

  def receive(self, index: int, message: dict[str, int]) -> None:
    """Receives a message of the process `index`."""
    if 'stop' in message:
      self._ask(message['stop'])
    elif 'ask' in message:
      with self._changed:
        self._told = message['ask']
        self._send({'passed': self._passed})
    elif 'passed' in message:
      self._note_answer(index, message['passed'])
    elif 'stop_at' in message:
      with self._changed:
        self._stop_at = message['stop_at']
        self._changed.notify_all()

  def _ask(self, signal: int) -> None:
    if self._place.index == 0 and not self._asked:
      self._asked = True
      self._send({'ask': signal})

  def _note_answer(self, index: int, passed: int) -> None:
    self._answers[index] = passed
    if self._place.index == 0 and len(self._answers) == self._place.count:
      self._send({'stop_at': max(self._answers.values()) + 1})


# That of the cluster that this process has joined.
AGREEMENT: ContextVar[Agreement | None] = ContextVar('agreement', default=None)
