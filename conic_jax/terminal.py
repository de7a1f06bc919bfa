"""Lines on the terminal; output that fails never stops a run."""
import contextlib
import os
import re
import sys
from typing import IO, Any

# A byte of a file name that is no UTF-8, as Python holds it, escaped.
_BYTE = re.compile(r'\\u(dc[89a-f][0-9a-f])')


def print_line(line: str, stream: IO[str] | None = None) -> None:
  """Prints a line and flushes it; drops it if the stream fails, as a closed pipe or a full disk does.

  Args:
    line: the text; characters that the stream's encoding lacks are escaped.
    stream: where to; standard output by default.
  """
  stream = stream or sys.stdout
  try:
    print(encodable(line, stream), file=stream, flush=True)
  except (OSError, ValueError):
    silence(stream)


def encodable(text: str, stream: Any) -> str:
  """A text with the characters that a stream's encoding lacks escaped."""
  return printable(text, getattr(stream, 'encoding', None) or 'utf-8')


def printable(text: str, encoding: str = 'utf-8') -> str:
  r"""A text with what an encoding lacks escaped, such as '\udcff' for a byte of a file name."""
  return text.encode(encoding, 'backslashreplace').decode(encoding)


def file_name(text: str) -> str:
  """The file name that `printable` made this text of."""
  return _BYTE.sub(lambda match: chr(int(match[1], 16)), text)


def silence(stream: Any) -> None:
  """Drops what a failed stream still holds, which Python would try to write again as it ends."""
  with contextlib.suppress(OSError, ValueError, AttributeError):
    kept = os.dup(stream.fileno())
    try:
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, stream.fileno())
      os.close(nowhere)
      stream.flush()
    finally:
      os.dup2(kept, stream.fileno())
      os.close(kept)
