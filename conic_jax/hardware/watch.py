"""Each process of a cluster learns when another is lost, says so in one sentence, and ends.

Process 0 is connected to every other. All send a beat every few seconds; a connection that breaks or falls
silent is a process lost, and process 0 tells the others. All clocks are monotonic.
"""
import asyncio
import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from conic_jax.ending import LOST, end_at_once, naming_checkpoint
from conic_jax.hardware.agreement import ABOUT_STOPPING, Agreement
from conic_jax.hardware.place import Place
from conic_jax.hardware.post import Message, Post

# Of `lost_after`: the silence that counts, so that all have spoken in time, and the time between beats.
_SILENCE, _BEAT = 0.8, 1 / 15
# Seconds that a process has to end by itself after another has ended with an error, which it may share.
_GRACE = 10.0
# Seconds that last messages may take.
_FLUSH = 2.0


@dataclasses.dataclass
class Neighbour:
  """A process at the other end of a connection; `heard` is the monotonic time of its last message."""
  post: Post
  host: str
  heard: float


class Watch:
  """A thread that watches the other processes.

  Attributes:
    place: this process's place.
    lost_after: seconds until a silent process counts as lost.
    neighbours: the connected processes: all for process 0, process 0 for the others.
    agreement: where all processes stop after a signal.
    all_finished: set once every process has finished.
    loop: the thread's event loop.
  """

  def __init__(self, place: Place, lost_after: float, last_checkpoint: Callable[[], str | None]):
    self.place, self.lost_after, self._last_checkpoint = place, lost_after, last_checkpoint
    self.neighbours: dict[int, Neighbour] = {}
    self.agreement = Agreement(place, self._carry)
    self.all_finished = threading.Event()
    self.loop = asyncio.new_event_loop()
    self._finished: set[int] = set()
    self._tasks: set[asyncio.Task] = set()
    self._ended: Message | None = None
    self._failing = self._closing = self._leaving = False
    # When the thread last ran, and for how long it did not before `_woke`: this process may be stopped too.
    self._ticked = self._woke = time.monotonic()
    self._slept = 0.0
    self._thread = threading.Thread(target=self._run, name='watch', daemon=True)

  def start(self) -> None:
    """Starts the thread."""
    self._thread.start()

  def _run(self) -> None:
    asyncio.set_event_loop(self.loop)
    self.loop.run_forever()
    for task in asyncio.all_tasks(self.loop):
      task.cancel()
    self.loop.run_until_complete(asyncio.sleep(0))
    self.loop.close()

  def call(self, work: Coroutine, seconds: float | None = None) -> Any:
    """Runs a coroutine in the thread and waits for its result; Ctrl-C ends the waiting."""
    return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

  def spawn(self, work: Coroutine) -> None:
    """Runs a coroutine of the thread beside the others."""
    task = self.loop.create_task(work)
    self._tasks.add(task)
    task.add_done_callback(self._tasks.discard)

  # ---- For the main thread ----

  def finish(self) -> None:
    """Says that this process has done its work, and waits until all have; ends the process if one is lost."""
    self.call(self._finish())
    while not self.all_finished.wait(1.0):
      pass

  def leave(self, code: int, why: str) -> None:
    """Tells the others that this process ends early with an exit code."""
    self._leaving = True
    with contextlib.suppress(TimeoutError):
      self.call(self._broadcast({'ended': self.place.index, 'code': code, 'why': why}), _FLUSH)

  def await_loss(self, of_a_collective: bool) -> None:
    """Waits, after an error that a loss may have caused, for a loss that ends this process."""
    self._failing = True
    self.loop.call_soon_threadsafe(self._speak_if_ended)
    time.sleep(self.lost_after if of_a_collective else min(3.0, self.lost_after))

  def end_hung(self, hung_after: float) -> None:
    """Ends all processes, as a step of this one hangs; each shows its stacks."""
    message = {'hung': self.place.index, 'host': socket.gethostname(), 'seconds': hung_after}
    self.loop.call_soon_threadsafe(self._note_hung, message)

  def linger(self, seconds: float) -> None:
    """Waits in process 0 until the others have left, whose connections it carries."""
    end = time.monotonic() + seconds
    while self.place.index == 0 and self.neighbours and time.monotonic() < end:
      time.sleep(0.02)

  def close(self) -> None:
    """Ends the thread once the process may leave."""
    self._closing = True
    self.linger(_GRACE)
    with contextlib.suppress(TimeoutError):
      self.call(self._close_posts(), _FLUSH)
    self.loop.call_soon_threadsafe(self.loop.stop)
    self._thread.join(_FLUSH)

  # ---- In the thread ----

  def begin(self) -> None:
    """Starts to watch the neighbours."""
    now = self._ticked = time.monotonic()
    for index, neighbour in self.neighbours.items():
      neighbour.heard = now
      self.spawn(self._listen(index, neighbour))
    self.spawn(self._beat())

  async def _beat(self) -> None:
    period = self.lost_after * _BEAT
    while True:
      await asyncio.sleep(period)
      now, before = time.monotonic(), self._ticked
      self._ticked = now
      if slept := (now - before > 3 * period):
        self._slept, self._woke = now - before, now
      for index, neighbour in list(self.neighbours.items()):
        neighbour.post.send({'beat': index})
        if slept:  # What came meanwhile is not read yet.
          neighbour.heard = now
        silence = now - neighbour.heard
        if silence > self.lost_after * _SILENCE and index not in self._finished:
          self._lose(index, neighbour.host, f'has been silent for {silence:.0f} s', silence)

  async def _listen(self, index: int, neighbour: Neighbour) -> None:
    while (message := await neighbour.post.read()) is not None:
      neighbour.heard = time.monotonic()
      self._receive(index, message)
    del self.neighbours[index]
    if self._closing or self._ended or index in self._finished or self.all_finished.is_set():
      return
    now = time.monotonic()
    slept = max(now - self._ticked, self._slept if now - self._woke < _GRACE else 0.0)
    if slept > self.lost_after * _SILENCE / 2:
      self._was_lost(slept)
    self._lose(index, neighbour.host, 'is gone: it was killed, or its machine or the network failed', 0.0)

  def _receive(self, index: int, message: Message) -> None:
    if 'finished' in message:
      self._note_finished(index)
    elif 'all_finished' in message:
      self.all_finished.set()
    elif 'ended' in message and self._ended is None:
      self._note_ended(message)
    elif 'hung' in message:
      self._note_hung(message)
    elif message.keys() & ABOUT_STOPPING:
      self.agreement.receive(index, message)
    elif 'lost' in message:
      if message['lost'] == self.place.index:
        self._was_lost(message['seconds'])
      else:
        self._lose(message['lost'], message['host'], message['how'], message['seconds'])

  async def _finish(self) -> None:
    self._note_finished(self.place.index)
    await self._broadcast({'finished': self.place.index})

  def _note_finished(self, index: int) -> None:
    self._finished.add(index)
    if self.place.index == 0 and len(self._finished) == self.place.count:
      self.all_finished.set()
      self._send({'all_finished': self.place.count})

  def _note_ended(self, message: Message) -> None:
    self._ended = message
    if self.place.index == 0:
      self._send(message)
    if self._failing:
      self._speak_if_ended()
    else:  # Where all stop together, the last to leave may have more to save.
      self.loop.call_later(self.lost_after if self.agreement.stopping else _GRACE, self._speak_if_ended)

  def _speak_if_ended(self) -> None:
    if self._ended is not None:
      name = self.place.named(self._ended['ended'])
      self._say_and_end(f'{name} {self._ended["why"]}, and this process cannot go on without it: its own '
                        f'message says why.{self._checkpoint()}', self._ended['code'])

  def _lose(self, index: int, host: str, how: str, seconds: float) -> None:
    """Tells the others and ends this process."""
    if self._leaving or self._ended:
      return
    since = time.strftime('%H:%M:%S', time.localtime(time.time() - seconds))
    self._send({'lost': index, 'host': host, 'how': how, 'seconds': seconds})
    self._say_and_end(f'{self.place.named(index, host)} {how} (since {since}).{self._checkpoint()} Start all '
                      'processes again with the same command to go on.', LOST)

  def _was_lost(self, seconds: float) -> None:
    self._say_and_end(f'This process, {self.place.index} of {self.place.count}, was stopped or cut off for '
                      f'{seconds:.0f} s, and the others have ended without it.{self._checkpoint()} Start all '
                      'processes again with the same command to go on.', LOST)

  def _note_hung(self, message: Message) -> None:
    """Ends this process with its stacks, as that of which the message tells, after telling the others."""
    if self._leaving or self._ended:
      return
    self._send(message)
    name = self.place.named(message['hung'], message['host'])
    self._say_and_end(f'{name} did not end a step within {message["seconds"]:g} s; the stacks of all '
                      f'processes say where they hang.{self._checkpoint()} Start all processes again with '
                      'the same command to go on.', LOST, stacks=True)

  def _say_and_end(self, sentence: str, code: int, stacks: bool = False) -> None:
    if self._leaving:
      return
    self._leaving = True
    self.spawn(self._flush_and_end(f'conic_jax: {sentence}', code, stacks))

  async def _flush_and_end(self, line: str, code: int, stacks: bool) -> None:
    await self._flush()
    end_at_once(line, code, stacks)

  def _checkpoint(self) -> str:
    return naming_checkpoint(self._last_checkpoint)

  def _send(self, message: Message) -> None:
    for neighbour in self.neighbours.values():
      neighbour.post.send(message)

  def _carry(self, message: Message) -> None:
    self.loop.call_soon_threadsafe(self._carry_in_the_thread, message)

  def _carry_in_the_thread(self, message: Message) -> None:
    self._send(message)
    if self.place.index == 0:
      self.agreement.receive(0, message)

  async def _broadcast(self, message: Message) -> None:
    self._send(message)
    await self._flush()

  async def _flush(self) -> None:
    posts = [neighbour.post for neighbour in self.neighbours.values()]
    await asyncio.gather(*(post.flush(_FLUSH / 2) for post in posts))

  async def _close_posts(self) -> None:
    for neighbour in self.neighbours.values():
      neighbour.post.close()
