"""File access: local files through the operating system, remote ones (gs://…) through TensorFlow."""
import os
from collections.abc import Iterator
from typing import BinaryIO

from conic_jax.data.without_keras import tf
from conic_jax.errors import UserError


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


def walk(root: str) -> Iterator[tuple[str, bool]]:
  """Walks everything below a folder except hidden entries: (path from the root, whether it is a folder)."""
  listing = _list_remote if is_remote(root) else _list_local
  waiting = ['']
  while waiting:
    above = waiting.pop()
    for name, is_folder in listing(f'{root}/{above}'):
      if not name.startswith('.'):
        yield above + name, is_folder
        if is_folder:
          waiting.append(f'{above}{name}/')


def folders(root: str) -> set[str]:
  """Names of a folder's direct subfolders; empty if it cannot be listed."""
  try:
    return {name for name, is_folder in (_list_remote if is_remote(root) else _list_local)(root) if is_folder}
  except (OSError, tf.errors.OpError):
    return set()


def _list_local(folder):
  with os.scandir(folder) as entries:
    yield from ((entry.name, entry.is_dir()) for entry in entries)


def _list_remote(folder):
  _, folders, names = next(iter(tf.io.gfile.walk(folder)), ('', [], []))
  yield from ((name.rstrip('/'), True) for name in folders)
  yield from ((name, False) for name in names)
