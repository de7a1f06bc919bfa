"""Files that a command writes: to a path of this machine, or to a bucket."""
import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conic_jax.buckets.bucket import copy, in_words, is_url, open_path
from conic_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Output:
  """Where a command writes.

  Attributes:
    path: the file or folder, of this machine.
    folder: the folder of the bucket that all beside `path` goes to; None if it stays on this machine.
  """
  path: Path
  folder: Any = None

  def name(self, written: Path) -> Path | str:
    """The path, or the URL, of a file that was written."""
    if self.folder is None:
      return written
    return str(self.folder / written.relative_to(self.path.parent).as_posix())


@contextlib.contextmanager
def output(out: str | Path, flag: str, new: bool = False) -> Iterator[Output]:
  """A path of this machine to write to; what is for a bucket goes there once all of it is written.

  Args:
    out: a path, or a URL in a bucket.
    flag: the flag or setting that names it, for messages.
    new: whether a file or folder in a bucket must not be there yet.

  Raises:
    UserError: if the bucket cannot be written, or the name is taken.
  """
  if not is_url(out):
    yield Output(Path(out))
    return
  remote = open_path(str(out), flag)
  with in_words(remote, flag):
    if new and remote.exists():
      raise UserError(f'{remote} is there already: delete it or give another {flag}.')
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    yield Output(folder / remote.name, remote.parent)
    with in_words(remote, flag):
      copy(folder, remote.parent)
