"""TensorBoard's events, written by the thread that reports."""
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from conic_jax.data.lazy_tensorflow import Event, SessionLog, Summary, SummaryMetadata, tf
from conic_jax.run.appended import Appended

_CASTAGNOLI = 0x82f63b78  # Its polynomial, the highest power in the lowest bit.
_MASK = 0xa282ead8  # TFRecord masks checksums, as the CRC of data that holds CRCs is weak.


class Events:
  """An events file of a run.

  A writer with a thread and a queue, as TensorFlow's and tensorboardX's are, blocks the training for ever
  once the thread has died.

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
    self._file.append(record(_event(file_version='brain.Event:2'))
                      + record(_event(step=first_step + 1, session_log=start)))

  def write(self, step: int, figures: Mapping[str, float | str]) -> None:
    """Writes figures, scalars and words by name, as one event.

    Raises:
      OSError: if it cannot be written; nothing of it is.
    """
    values = [_value(name, figure) for name, figure in figures.items()]
    self._file.append(record(_event(step=step, summary=Summary(value=values))))

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def record(content: bytes) -> bytes:
  """Bytes as TFRecord stores them: their length and themselves, each with its masked CRC-32C."""
  length = struct.pack('<Q', len(content))
  return b''.join([length, _checksum(length), content, _checksum(content)])


def crc32c(data: bytes) -> int:
  """The CRC-32C (Castagnoli) of bytes."""
  value = 0xffffffff
  for byte in data:
    value = value >> 8 ^ _TABLE[(value ^ byte) & 0xff]
  return value ^ 0xffffffff


def _checksum(data: bytes) -> bytes:
  value = crc32c(data)
  return struct.pack('<I', ((value >> 15 | value << 17) + _MASK) & 0xffffffff)


def _remainder(byte: int) -> int:
  for _ in range(8):
    byte = byte >> 1 ^ (byte & 1) * _CASTAGNOLI
  return byte


_TABLE = [_remainder(byte) for byte in range(256)]


def _event(**fields) -> bytes:
  return Event(wall_time=time.time(), **fields).SerializeToString()


def _value(name: str, figure: float | str) -> Summary.Value:
  """A figure as TensorBoard's scalar, a word as its text."""
  if not isinstance(figure, str):
    return Summary.Value(tag=name, simple_value=figure)
  shown = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name='text'))
  return Summary.Value(tag=f'{name}/text_summary', metadata=shown,
                       tensor=tf.make_tensor_proto([figure], tf.string))
