"""How the processes of a cluster find each other."""
import asyncio
import errno
import socket
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable

import jax

from conic_jax.errors import UserError, listed
from conic_jax.hardware.place import Place
from conic_jax.hardware.post import Message, Post
from conic_jax.hardware.relay import relay
from conic_jax.hardware.watch import Neighbour, Watch

# Seconds until a line says what is waited for.
_QUIET = 10.0
# Seconds between two attempts, and for one connection.
_PAUSE, _ATTEMPT = 0.3, 10.0
# What a process tells of itself.
_HELLO = {'hello', 'count', 'host', 'jax'}
_LOOPBACK = '127.0.0.1'


class FirstProcess:
  """Process 0: listens for the others, and carries their connections to JAX's coordinator."""

  def __init__(self, watch: Watch, say: Callable[[str], None]):
    self._watch, self._place, self._say = watch, watch.place, say
    self._changed = asyncio.Event()
    self._started = False
    self.held = socket.socket()
    # Nobody else is given JAX's port meanwhile; gRPC binds with SO_REUSEPORT too.
    self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    self.held.bind((_LOOPBACK, 0))
    self.coordinator = self.held.getsockname()

  async def gather(self, seconds: float) -> None:
    """Waits until all processes have come.

    Raises:
      UserError: if the port is not free, or a process does not come in time.
    """
    await self._listen()
    end = time.monotonic() + seconds
    notice = self._watch.loop.call_later(_QUIET, self._notice)
    try:
      while missing := self._missing():
        self._changed.clear()
        try:
          await asyncio.wait_for(self._changed.wait(), max(0.0, end - time.monotonic()))
        except TimeoutError as error:
          late = UserError(f'{listed(missing).capitalize()} of {self._place.count} did not come to '
                           f'{self._place.address} within {seconds:.0f} s: start '
                           'every process, with --process_id from 0, or wait longer with '
                           '--start_within=SECONDS.')
          await self._tell({'refused': str(late)})
          raise late from error
    finally:
      notice.cancel()
    self._started = True
    await self._tell({'go': self._place.count})
    self._watch.begin()

  def _missing(self) -> list[str]:
    here = self._watch.neighbours
    return [f'process {index}' for index in range(1, self._place.count) if index not in here]

  def _notice(self) -> None:
    self._say(f'Waiting at {self._place.address} for {listed(self._missing())} of {self._place.count} …')

  async def _tell(self, message: Message) -> None:
    posts = [neighbour.post for neighbour in self._watch.neighbours.values()]
    for post in posts:
      post.send(message)
    await asyncio.gather(*(post.flush(1.0) for post in posts))

  async def _listen(self) -> None:
    port, busy = self._place.port, False
    try:  # With SO_REUSEPORT, two listeners may share a port.
      _, writer = await asyncio.wait_for(asyncio.open_connection(_LOOPBACK, port), 1.0)
      writer.close()
      busy = True
    except (OSError, TimeoutError):
      pass
    try:
      if busy:
        raise OSError(errno.EADDRINUSE, 'Address already in use')
      dual = socket.has_dualstack_ipv6()
      listener = socket.create_server(('', port), family=socket.AF_INET6 if dual else socket.AF_INET,
                                      dualstack_ipv6=dual, reuse_port=True, backlog=1024)
    except OSError as error:
      used = error.errno == errno.EADDRINUSE
      reason = 'is in use by another program' if used else f'cannot be opened ({error})'
      raise UserError(f'Port {port} of this machine {reason}: give another port with --coordinator, the same '
                      'for all processes.') from error
    await asyncio.start_server(lambda *pair: self._watch.spawn(self._serve(*pair)), sock=listener)

  async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
    post = Post(reader, writer)
    try:
      hello = await asyncio.wait_for(post.read(), _ATTEMPT) or {}
    except TimeoutError:
      hello = {}
    if 'relay' in hello:
      await relay(reader, writer, self._to_coordinator, keep_open=False)
    elif _HELLO - hello.keys():
      writer.close()
    elif refusal := self._refusal(hello):
      post.send({'refused': refusal})
      await post.flush(1.0)
      writer.close()
    else:
      post.send({'welcome': socket.gethostname()})
      await self._welcome(hello, post)

  async def _welcome(self, hello: Message, post: Post) -> None:
    index = hello['hello']
    self._watch.neighbours[index] = Neighbour(post, hello['host'], time.monotonic())
    self._changed.set()
    while not self._started:  # A process that goes before the start may come again.
      await asyncio.sleep(_PAUSE)
      if post.reader.at_eof() and not self._started:
        del self._watch.neighbours[index]
        self._changed.set()
        return

  def _refusal(self, hello: Message) -> str | None:
    index, count = hello['hello'], hello['count']
    if count != self._place.count:
      return (f'Process {index} was started with --num_processes={count}, process 0 with '
              f'{self._place.count}: give all processes the same number.')
    if (held := self._watch.neighbours.get(index)) or index == 0 or self._started:
      where = f', on {held.host}' if held else ''
      return (f'There is a process {index} at {self._place.address} already{where}: give each process its '
              'own --process_id.')
    if hello['jax'] != jax.__version__:
      return (f'Process {index} has JAX {hello["jax"]}, process 0 has {jax.__version__}: install the same '
              'version on all machines.')
    return None

  async def _to_coordinator(self) -> tuple[StreamReader, StreamWriter]:
    end = time.monotonic() + _ATTEMPT * 3
    while True:
      try:
        return await asyncio.open_connection(*self.coordinator)
      except OSError:  # It starts a little later than this process's watch.
        if time.monotonic() > end:
          raise
      await asyncio.sleep(_PAUSE / 3)


async def find_first(watch: Watch, seconds: float, say: Callable[[str], None]) -> None:
  """Connects to process 0 and waits until all processes have come.

  Raises:
    UserError: if process 0 does not answer in time, or refuses.
  """
  place, end = watch.place, time.monotonic() + seconds
  notice = watch.loop.call_later(_QUIET, say, f'Waiting for process 0 at {place.address} …')
  try:
    post = await _connected(place, end, seconds)
    post.send({'hello': place.index, 'count': place.count, 'host': socket.gethostname(),
               'jax': jax.__version__})
    welcome = await _answer(post, place, max(1.0, end - time.monotonic()))
    notice.cancel()
    notice = watch.loop.call_later(_QUIET, say, 'Waiting for the other processes …')
    # Process 0 knows who is missing, and gives up first.
    await _answer(post, place, seconds + _QUIET)
  finally:
    notice.cancel()
  watch.neighbours[0] = Neighbour(post, welcome['welcome'], time.monotonic())
  watch.begin()


async def _connected(place: Place, end: float, seconds: float) -> Post:
  while True:
    left = end - time.monotonic()
    try:
      opening = asyncio.open_connection(place.host, place.port)
      return Post(*await asyncio.wait_for(opening, min(left, _ATTEMPT)))
    except (OSError, TimeoutError) as error:
      if time.monotonic() + _PAUSE > end:
        reason = getattr(error, 'strerror', None) or 'no answer'
        raise UserError(f'Process 0 did not answer at {place.address} within {seconds:.0f} s ({reason}): '
                        'start it, check --coordinator, or wait longer with --start_within=SECONDS.'
                        ) from error
    await asyncio.sleep(_PAUSE)


async def _answer(post: Post, place: Place, seconds: float) -> Message:
  try:
    answer = await asyncio.wait_for(post.read(), seconds)
  except TimeoutError as error:
    raise UserError(f'What listens at {place.address} does not answer as process 0: check --coordinator.'
                    ) from error
  if answer is None:
    raise UserError(f'Process 0 at {place.address} closed the connection: its own message says why, or '
                    'another program listens there.')
  if 'refused' in answer:
    raise UserError(answer['refused'])
  return answer


async def open_relay(watch: Watch) -> str:
  """The address at which this process reaches JAX's coordinator, through process 0."""
  place = watch.place

  async def connect() -> tuple[StreamReader, StreamWriter]:
    reader, writer = await asyncio.open_connection(place.host, place.port)
    Post(reader, writer).send({'relay': place.index})
    return reader, writer

  server = await asyncio.start_server(
    lambda reader, writer: watch.spawn(relay(reader, writer, connect, keep_open=True)), _LOOPBACK, 0)
  host, port = server.sockets[0].getsockname()[:2]
  return f'{host}:{port}'
