"""TensorBoard's events, written by the thread that reports. The only module that imports tensorboardX."""
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from conic_jax.run.appended import Appended


class Events:
  """An events file of a run.

  A writer with a thread and a queue, such as tensorboardX's, blocks the training for ever once the thread has
  died.

  Args:
    folder: TensorBoard's folder of the run; created if there is none.
    first_step: TensorBoard drops what earlier files say of later steps.

  Raises:
    OSError: if the file cannot be written.
  """

  def __init__(self, folder: Path, first_step: int):
    folder.mkdir(parents=True, exist_ok=True)
    name = f'events.out.tfevents.{time.time_ns() // 10**9}.{socket.gethostname()}.{os.getpid()}'
    self._file = Appended(folder / name)
    start = SessionLog(status=SessionLog.START)
    self._file.append(record(Event(file_version='brain.Event:2'))
                      + record(Event(step=first_step + 1, session_log=start)))

  def write(self, step: int, figures: Mapping[str, float | str]) -> None:
    """Writes figures, scalars and words by name, as one event.

    Raises:
      OSError: if it cannot be written; nothing of it is.
    """
    values = [value for name, figure in figures.items() for value in _summary(name, figure).value]
    self._file.append(record(Event(step=step, summary=summary.Summary(value=values))))

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def record(event: Event) -> bytes:
  """An event as TFRecord stores it: its length and its bytes, each with its masked CRC-32C."""
  event.wall_time = time.time()
  content = event.SerializeToString()
  length = struct.pack('<Q', len(content))
  return (length + struct.pack('<I', masked_crc32c(length))
          + content + struct.pack('<I', masked_crc32c(content)))


def _summary(name: str, figure: float | str) -> summary.Summary:
  return summary.text(name, figure) if isinstance(figure, str) else summary.scalar(name, figure)
