"""Keeps what Gloo prints off the user's terminal."""
import contextlib
import ctypes
import os
import re
import sys
import threading
from collections.abc import Iterator

# Several connections print at once, in pieces.
_CHATTER = re.compile(rb'(\[Gloo\] Rank | is connected to | peer ranks\. |'
                      rb'Expected number of connected peer ranks is : |\d+)*\s*')


@contextlib.contextmanager
def without_gloo_lines() -> Iterator[None]:
  """Drops the lines that Gloo prints on stdout at each new connection; it has no setting for them.

  Python's own stdout goes where it went, past the filter.
  """
  before = sys.stdout
  try:
    before.flush()
    real = os.dup(1)
  except (OSError, ValueError, AttributeError):  # There is no stdout to keep clean.
    yield
    return
  reader, writer = os.pipe()
  os.dup2(writer, 1)
  os.close(writer)
  sifting = threading.Thread(target=_sift, args=(reader, real), name='stdout', daemon=True)
  sifting.start()
  sys.stdout = open(real, 'w', encoding=before.encoding, errors=before.errors, closefd=False,  # noqa: SIM115
                    buffering=1 if before.line_buffering else -1)
  try:
    yield
  finally:
    with contextlib.suppress(OSError):
      sys.stdout.flush()
    sys.stdout = before
    ctypes.CDLL(None).fflush(None)
    os.dup2(real, 1)
    sifting.join(1.0)


def _sift(reader: int, real: int) -> None:
  with open(reader, 'rb') as lines, contextlib.suppress(OSError):
    for line in lines:
      if not _CHATTER.fullmatch(line):
        os.write(real, line)
