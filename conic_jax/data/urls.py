"""Files by path or URL: local ones through the operating system, remote ones in ranges through fsspec.

fsspec reads s3://, gs://, https:// and more, some of them with packages of their own. TensorFlow's reader of
gs://, which `files` uses, fetches blocks of 64 MB, too many for one image.
"""
import glob
import itertools
import os
import time
from typing import Any, BinaryIO

from conic_jax.data import files
from conic_jax.errors import UserError

_TRIES, _PAUSE = 3, 0.5  # A network fails now and then; seconds between two tries.
_STREAMED = 1 << 24  # Bytes at a time of a remote file that is read through.
# What tells two contents of the same size apart, by the names of the various file systems.
_TAGS = 'generation', 'ETag', 'etag', 'mtime', 'LastModified', 'updated', 'created'


def read(path: str, start: int, length: int) -> bytes:
  """Reads `length` bytes from `start`.

  Raises:
    OSError: if they cannot be read, or the file ends before.
  """
  if files.is_remote(path):
    system, inner = _system(path)
    data = _tried(lambda: system.cat_file(inner, start=start, end=start + length), path)
  else:
    data = files.read(path, start, length)
  if len(data) != length:
    raise OSError(f'{path} has {len(data)} bytes from {start} where {length} were asked for')
  return data


def read_whole(path: str) -> bytes:
  """Reads a whole file; raises an OSError if it cannot be read."""
  if not files.is_remote(path):
    return files.read(path)
  system, inner = _system(path)
  return _tried(lambda: system.cat_file(inner), path)


def stream(path: str, ahead: int = _STREAMED) -> BinaryIO:
  """Opens a file; of a remote one at least `ahead` bytes are fetched at a time."""
  if not files.is_remote(path):
    return open(path, 'rb')
  system, inner = _system(path)
  return _tried(lambda: system.open(inner, 'rb', block_size=ahead, cache_type='readahead'), path)


def stamp(path: str) -> tuple[int, str] | None:
  """Size in bytes and what else tells that the content changed; None if there is no such file."""
  if not files.is_remote(path):
    try:
      stat = os.stat(path)
    except OSError:
      return None
    return stat.st_size, str(stat.st_mtime_ns)
  system, inner = _system(path)
  try:
    info = _tried(lambda: system.info(inner), path)
  except FileNotFoundError:
    return None
  except OSError as error:
    raise UserError(f'{path} cannot be reached ({error}): mend the address, the network or the right to read '
                    'it.') from None
  return int(info.get('size') or -1), str(next((info[tag] for tag in _TAGS if info.get(tag)), ''))


def is_folder(path: str) -> bool:
  """Whether a path is a folder; False if it cannot be seen."""
  if not files.is_remote(path):
    return os.path.isdir(path)
  system, inner = _system(path)
  try:
    return bool(_tried(lambda: system.isdir(inner), path))
  except OSError:
    return False


def below(folder: str) -> list[str]:
  """Paths from a folder of all files in it, however deep, sorted; hidden ones are left out.

  Raises:
    OSError: if it cannot be listed.
  """
  if not files.is_remote(folder):
    return [path for path, is_subfolder in files.walk(folder, []) if not is_subfolder]
  system, inner = _system(folder)
  inner = inner.rstrip('/')
  found = (path[len(inner):].lstrip('/') for path in _tried(lambda: system.find(inner), folder))
  return sorted(path for path in found if not any(part.startswith('.') for part in path.split('/')))


def matching(pattern: str) -> list[str]:
  """The files that a pattern with * names, sorted."""
  if not files.is_remote(pattern):
    return sorted(glob.glob(pattern, recursive=True))
  system, inner = _system(pattern)
  try:
    return sorted(system.unstrip_protocol(path) for path in _tried(lambda: system.glob(inner), pattern))
  except OSError:
    return []


def join(folder: str, path: str) -> str:
  """A path from a folder; `path` itself if it is absolute or a URL."""
  return path if files.is_remote(path) else os.path.join(folder, path)


def common_folder(paths: list[str]) -> str:
  """The deepest folder that all files are in, with a slash at its end; '' if there is none."""
  first, last = (path.split('/')[:-1] for path in (min(paths), max(paths)))
  shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last))
  return ''.join(f'{part}/' for part, _ in shared)


def _system(url: str) -> tuple[Any, str]:
  """The file system of a URL, which fsspec keeps for the next call, and the path in it."""
  import fsspec  # Takes a while, and most images are local.
  scheme = url.partition('://')[0]
  try:
    return fsspec.core.url_to_fs(url)
  except ImportError as error:
    raise UserError(f'{scheme}:// cannot be read yet ({error}): install that package with pip.') from None
  except ValueError as error:
    raise UserError(f'{scheme}:// cannot be read ({error}): copy the images to a folder, a bucket or a web '
                    'server.') from None


def _tried(action: Any, path: str) -> Any:
  """The result of an action on the network, which is repeated if it fails; what does not exist fails at once.

  Raises:
    OSError: if it fails to the end.
  """
  for pause in (*itertools.repeat(_PAUSE, _TRIES - 1), None):
    try:
      return action()
    except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError):
      raise
    except Exception as error:  # Every file system has errors of its own.
      if pause is None:
        raise OSError(f'{path}: {type(error).__name__}: {error}') from error
      time.sleep(pause)
  raise AssertionError
