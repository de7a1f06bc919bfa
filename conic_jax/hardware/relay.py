"""Carries the bytes of JAX's own connections between a process and process 0."""
import asyncio
import contextlib
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable

Connect = Callable[[], Awaitable[tuple[StreamReader, StreamWriter]]]

_CHUNK = 2**16


async def relay(reader: StreamReader, writer: StreamWriter, connect: Connect, keep_open: bool) -> None:
  """Carries bytes both ways between a connection and the one that `connect` opens, until the former closes.

  Args:
    reader, writer: the connection.
    connect: opens the other one.
    keep_open: whether the connection stays open when the other one breaks. JAX aborts a process whose
      connection breaks; one that merely falls silent leaves its end to `watch`.
  """
  try:
    far_reader, far_writer = await connect()
  except OSError:
    if keep_open:
      await _swallow(reader)
    writer.close()
    return
  back = asyncio.ensure_future(_copy(far_reader, writer))
  if not keep_open:
    back.add_done_callback(lambda _: writer.close())
  await _copy(reader, far_writer)
  if keep_open and not reader.at_eof():
    await _swallow(reader)
  back.cancel()
  far_writer.close()
  writer.close()


async def _copy(reader: StreamReader, writer: StreamWriter) -> None:
  with contextlib.suppress(OSError):
    while data := await reader.read(_CHUNK):
      writer.write(data)
      await writer.drain()


async def _swallow(reader: StreamReader) -> None:
  with contextlib.suppress(OSError):
    while await reader.read(_CHUNK):
      pass
