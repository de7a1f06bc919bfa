"""Paths in a bucket: what they look like, how they are opened, and what is wrong with them in words."""
import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from conic_jax.errors import UserError, first_line

if TYPE_CHECKING:
  from etils import epath

# The kinds of buckets: the package that reads them, and the extra that installs it.
_KINDS = {'gs': ('gcsfs', 'gcs'), 's3': ('s3fs', 's3')}
_LOGIN = {'gs': '`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS',
          's3': '`aws configure`, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY'}
# Orbax's file that says that all of a checkpoint in a bucket is there.
COMMITTED = 'commit_success.txt'
# TensorFlow's own client, which epath takes by default, knows neither S3 nor an emulator. What epath takes is
# settled at its first path, of whatever kind: before a setting has named a bucket.
if any(importlib.util.find_spec(package) for package, _ in _KINDS.values()):
  os.environ.setdefault('EPATH_USE_TF', '0')
# Parts of what the libraries say of a request without credentials.
_NO_CREDENTIALS = ('credential', 'anonymous', 'could not automatically determine')


def is_url(name: object) -> bool:
  """Whether a name is a URL, not a path of this machine."""
  return '://' in str(name)


def is_remote(folder: Any) -> bool:
  """Whether a path is in a bucket."""
  return str(folder).startswith(tuple(f'{kind}://' for kind in _KINDS))


def open_path(url: str, field: str) -> 'epath.Path':
  """The path of a URL in a bucket.

  Args:
    url: gs://BUCKET/… or s3://BUCKET/….
    field: the setting or flag that names it, for messages.

  Raises:
    UserError: if it is another kind of URL, or the package that reads such buckets is not installed.
  """
  kind, _, rest = url.partition('://')
  if kind not in _KINDS or not rest.strip('/'):
    raise UserError(f"{field} is '{url}': give a folder, gs://BUCKET/PATH or s3://BUCKET/PATH.")
  package, extra = _KINDS[kind]
  if importlib.util.find_spec(package) is None:
    raise UserError(f"{field} is '{url}', and {kind}:// needs the package {package}: "
                    f"pip install 'conic_jax[{extra}]'.")
  import fsspec.config
  from etils import epath
  for name in ('gcs', 'gs', 's3'):  # Other processes write, too.
    fsspec.config.conf.setdefault(name, {})['use_listings_cache'] = False
  for name in ('gcsfs', 'gcsfs.retry', 's3fs'):
    logging.getLogger(name).addFilter(_drop_warnings)
  return epath.Path(url.rstrip('/'))


def _drop_warnings(record: logging.LogRecord) -> bool:
  """Whether a line of a client's log is an error: it warns of what is tried again."""
  return record.levelno >= logging.ERROR


@contextlib.contextmanager
def in_words(url: Any, field: str) -> Iterator[None]:
  """Turns what a client raises into a sentence.

  Raises:
    UserError: for any failure but a user's error.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    raise UserError(f"{field} is '{url}', {why(error, str(url))}.") from error


def why(error: BaseException, url: str) -> str:
  """The reason why a path in a bucket cannot be used, with the remedy, as the rest of a sentence."""
  kind, _, rest = url.partition('://')
  bucket, told = rest.split('/')[0], first_line(error, 200)
  lower = f'{type(error).__name__} {told}'.lower()
  if any(part in lower for part in _NO_CREDENTIALS):
    return f'and this machine has no credentials for it ({told}): {_LOGIN[kind]}'
  if isinstance(error, PermissionError) or 'forbidden' in lower or 'access denied' in lower:
    return f'which these credentials may not read and write ({told}): ask for the right to, or give another'
  if isinstance(error, FileNotFoundError) or 'nosuchbucket' in lower.replace(' ', ''):
    return f"and there is no bucket '{bucket}' ({told}): make it, or mend the name"
  return f'which cannot be reached ({told}): look at the network, and run the same command again'


def files_below(folder: Any) -> list[Any]:
  """The paths of all files below a folder, of this machine or in a bucket, in no order."""
  found = []
  for path in folder.iterdir():
    found += files_below(path) if path.is_dir() else [path]
  return found


def copy(path: Any, to: Any) -> None:
  """Copies a file, or a folder with all below it, between this machine and buckets."""
  for file in files_below(path) if path.is_dir() else [path]:
    target = to / file.relative_to(path).as_posix() if file != path else to
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(file.read_bytes())


def move(folder: Any, to: Any) -> None:
  """Moves a folder to a path of the same machine or bucket; a bucket makes the folders above it by itself."""
  if is_remote(folder):
    import fsspec
    for path in files_below(folder):
      system, name = fsspec.core.url_to_fs(str(path))
      system.copy(name, fsspec.core.url_to_fs(f'{to}/{path.relative_to(folder).as_posix()}')[1])
    folder.rmtree()
  else:
    to.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(to)


def size(path: Any) -> int:
  """Bytes of a file, of this machine or in a bucket."""
  stat = path.stat()
  return stat.length if is_remote(path) else stat.st_size


def checksum(path: 'epath.Path') -> str:
  """What a bucket keeps as the checksum of an object's content."""
  import fsspec
  system, name = fsspec.core.url_to_fs(str(path))
  facts = system.info(name)
  kind = next(key for key in ('crc32c', 'md5Hash', 'ETag') if facts.get(key))
  return f'{kind}:{facts[kind]}'
