"""Messages between the processes of a cluster: JSON objects, one a line."""
import asyncio
import contextlib
import json
from asyncio import StreamReader, StreamWriter
from typing import Any

Message = dict[str, Any]


class Post:
  """Messages over one connection."""

  def __init__(self, reader: StreamReader, writer: StreamWriter):
    self.reader, self.writer = reader, writer

  async def read(self) -> Message | None:
    """The next message; None once the connection is closed or carries something else."""
    try:
      line = await self.reader.readline()
      message = json.loads(line) if line.endswith(b'\n') else None
    except (OSError, ValueError):  # ValueError: no JSON, or a line without end.
      return None
    return message if isinstance(message, dict) else None

  def send(self, message: Message) -> None:
    """Sends a message without waiting for it to leave."""
    with contextlib.suppress(OSError, RuntimeError):
      self.writer.write(json.dumps(message).encode() + b'\n')

  async def flush(self, seconds: float) -> None:
    """Waits until all is handed to the system, for at most this long."""
    self.writer.transport.set_write_buffer_limits(0)
    with contextlib.suppress(OSError, TimeoutError):
      await asyncio.wait_for(self.writer.drain(), seconds)

  def close(self) -> None:
    """Closes the connection."""
    self.writer.close()
