"""Where the files of a run are."""
import dataclasses
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conic_jax.buckets.bucket import in_words, is_url, open_path
from conic_jax.home import cache_folder

if TYPE_CHECKING:
  from etils import epath


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """A folder of this machine, or one in a bucket with a working copy of its small files.

  Attributes:
    local: where this process reads and writes small files, and those that grow.
    remote: the folder in the bucket; None if there is none.
  """
  local: Path
  remote: 'epath.Path | None' = None

  def __truediv__(self, name: str) -> 'RunFolder':
    return RunFolder(self.local / name, None if self.remote is None else self.remote / name)

  def __str__(self) -> str:
    return str(self.large)

  def send(self) -> None:
    """Sends the working copy of a file to its bucket, if it has one.

    Raises:
      UserError: if it cannot be sent.
    """
    if self.remote is not None:
      with in_words(self.remote, 'config.run'):
        self.remote.write_bytes(self.local.read_bytes())

  @property
  def large(self) -> Any:
    """Where checkpoints are read and written: a path of this machine or in a bucket."""
    return self.local if self.remote is None else self.remote


def run_folder(name: str, field: str = 'config.run', process: int = 0) -> RunFolder:
  """The run's folder of a name that a user gave.

  Args:
    name: a path of this machine, or a URL.
    field: the setting or flag that names it, for messages.
    process: the number of this process, each of which has a working copy of its own.

  Raises:
    UserError: if it is a URL of no bucket, or the package for it is not installed.
  """
  if not is_url(name):
    return RunFolder(Path(name))
  remote = open_path(name, field)
  return RunFolder(working_copy(str(remote), process), remote)


def working_copy(url: str, process: int = 0) -> Path:
  """The folder of this machine for the working copy of a folder in a bucket, in the user's cache folder."""
  readable = re.sub(r'[^\w.-]', '_', url.rpartition('/')[2])
  number = f'-process-{process}' if process else ''
  return cache_folder() / 'buckets' / f'{readable}-{hashlib.sha256(url.encode()).hexdigest()[:12]}{number}'
