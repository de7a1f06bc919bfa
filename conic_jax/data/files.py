"""File access: local files through the operating system, remote ones (gs://…) through TensorFlow."""
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from conic_jax.data.lazy_tensorflow import tf
from conic_jax.errors import UserError

_NO_SCHEME = ('TensorFlow reads no {0}:// here: copy the images to a folder or to gs://, or mount the bucket '
              'as a folder')
# What file managers, archives and network storage leave in folders; of no user's making.
_FOREIGN = {'__MACOSX', '@eaDir', '@Recycle', '@Recently-Snapshot', '#recycle', '#snapshot', '$RECYCLE.BIN',
            'System Volume Information', 'lost+found', '__pycache__'}


def is_remote(path: str) -> bool:
  """Whether the path has a scheme, such as gs://bucket/name."""
  return '://' in path


def open_binary(path: str) -> BinaryIO:
  """Opens a file for reading; local files are unbuffered."""
  return tf.io.gfile.GFile(path, 'rb') if is_remote(path) else open(path, 'rb', buffering=0)


def read(path: str, start: int = 0, length: int = -1) -> bytes:
  """Reads `length` bytes from `start`; -1 reads to the end.

  Raises:
    OSError: if the file cannot be read.
  """
  try:
    with open_binary(path) as file:
      if start:
        file.seek(start)
      return file.read(length)
  except tf.errors.OpError as error:
    raise OSError(error.message) from error


def size(path: str) -> int:
  """Size of a local file in bytes, -1 if it cannot be seen."""
  try:
    return os.stat(path).st_size
  except OSError:
    return -1


def stamp(path: str) -> tuple[int, int]:
  """Size in bytes and modification time in nanoseconds.

  Raises:
    UserError: if there is no such file.
  """
  try:
    stat = tf.io.gfile.stat(path) if is_remote(path) else os.stat(path)
  except (OSError, tf.errors.OpError):
    raise UserError(f'{path} is missing: copy it there, or prepare the data set again.') from None
  return (stat.length, stat.mtime_nsec) if is_remote(path) else (stat.st_size, stat.st_mtime_ns)


def walk(root: str, skipped: list[str]) -> Iterator[tuple[str, bool]]:
  """Walks everything below a folder: (path from the root, whether it is a folder), files in sorted order.

  Leaves out hidden entries and the folders of file managers, archives and network storage.

  Args:
    root: the folder.
    skipped: receives a phrase for each subfolder that cannot be read, or links to a folder that it is in.

  Raises:
    OSError: if the root itself cannot be listed.
  """
  if is_remote(root):
    _check_scheme(root)
  above_root = () if is_remote(root) else tuple(map(_identity, Path(root).resolve().parents))
  levels = [_sorted_entries(root, '', above_root, skipped)]
  while levels:
    found = next(levels[-1], None)
    if found is None:
      levels.pop()
      continue
    path, is_folder, inside = found
    yield path, is_folder
    if is_folder:
      levels.append(_sorted_entries(root, f'{path}/', inside, skipped))


def _sorted_entries(root: str, above: str, inside: tuple[Any, ...], skipped: list[str]
                    ) -> Iterator[tuple[str, bool, tuple[Any, ...]]]:
  """What lies directly in a folder: (path from the root, whether it is a folder, folders that it is in)."""
  folder = f'{root}/{above}'
  identity = None if is_remote(root) else _identity(folder)
  if identity and identity in inside:
    skipped.append(f'{above[:-1]} (a link to a folder that it is in)')
    return
  try:
    entries = list((_list_remote if is_remote(root) else _list_local)(folder))
  except OSError as error:
    if not above:
      raise
    skipped.append(f'{above[:-1]} ({error.strerror or error})')
    return
  # In the order of whole paths, without holding them: what is in a folder sorts as its name with a slash.
  for name, is_folder in sorted(entries, key=lambda entry: f'{entry[0]}/' if entry[1] else entry[0]):
    if not name.startswith('.') and name not in _FOREIGN:
      yield above + name, is_folder, (*inside, identity)


def _identity(folder: str | Path) -> tuple[int, int] | None:
  """The device and number of a local folder, equal for all links to it; None if it cannot be seen."""
  try:
    stat = os.stat(folder)
  except OSError:
    return None
  return stat.st_dev, stat.st_ino


def folders(root: str) -> set[str]:
  """Names of a folder's direct subfolders; empty if it cannot be listed."""
  try:
    return {name for name, is_folder in (_list_remote if is_remote(root) else _list_local)(root) if is_folder}
  except (OSError, tf.errors.OpError):
    return set()


def _list_local(folder):
  with os.scandir(folder) as entries:
    yield from ((entry.name, entry.is_dir()) for entry in entries)


def _check_scheme(root):
  """Raises an OSError if TensorFlow does not know the scheme, of which `walk` would find nothing."""
  try:
    tf.io.gfile.stat(root)
  except tf.errors.UnimplementedError as error:
    raise OSError(errno.EPROTONOSUPPORT, _NO_SCHEME.format(root.partition('://')[0])) from error
  except tf.errors.OpError:
    pass  # A bucket's folder need not be an object of its own: what matters is what is listed in it.


def _list_remote(folder):
  _, folders, names = next(iter(tf.io.gfile.walk(folder)), ('', [], []))
  yield from ((name.rstrip('/'), True) for name in folders)
  yield from ((name, False) for name in names)
