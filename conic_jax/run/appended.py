"""Files that grow by whole records."""
import contextlib
import errno
import os
from pathlib import Path


class Appended:
  """A file that records are appended to, each whole or not at all, whatever the disk does.

  The folder must exist; the file is created if there is none.
  """

  def __init__(self, path: Path):
    self._file = path.open('ab', buffering=0)
    self._end = self._file.seek(0, os.SEEK_END)
    self._torn = False

  def append(self, record: bytes) -> None:
    """Appends a record.

    Raises:
      OSError: if it cannot be written; the file ends as before, and the next record is tried again.
    """
    try:
      if self._torn:
        self._file.truncate(self._end)
      self._torn = True
      if self._file.write(record) != len(record):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
      with contextlib.suppress(OSError):
        self._file.truncate(self._end)
        self._torn = False
      raise
    self._end += len(record)
    self._torn = False

  def close(self) -> None:
    """Closes the file."""
    with contextlib.suppress(OSError):
      self._file.close()
