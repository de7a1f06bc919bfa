"""Manifests: the size and a hash of every file of a folder, so that damage is noticed."""
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from conic_jax.buckets.bucket import checksum, files_below, is_remote, size
from conic_jax.run.json_file import write_json

FORMAT = 1
# Files hashed at the same time; hashing releases Python's lock.
_THREADS = 8

Manifest = dict[str, list]
Concerns = Callable[[str], bool]


def everything(name: str) -> bool:
  """Concerns every file of a folder."""
  del name
  return True


def make(folder: Any) -> Manifest:
  """[size in bytes, hash] of every file below a folder, by relative path."""
  names = sorted(path.relative_to(folder).as_posix() for path in files_below(folder))
  return {name: [size(folder / name), found] for name, found in _hashes(folder, names)}


def write(folder: Any, path: Any) -> None:
  """Writes the manifest of a folder to a file, atomically."""
  path.parent.mkdir(parents=True, exist_ok=True)
  write_json(path, {'format': FORMAT, 'files': make(folder)}, indent=0)


def damage(folder: Any, path: Any, concerns: Concerns = everything) -> str | None:
  """What is wrong with a folder by its manifest; None if all of it is as it was written.

  Args:
    folder: the folder.
    path: the manifest's file.
    concerns: which files, by their relative paths, to look at.

  Returns:
    A phrase that names the first file that differs.
  """
  try:
    wanted: Manifest = json.loads(path.read_text())['files']
    wanted = {name: [int(length), str(found)] for name, (length, found) in wanted.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    return f'its manifest {path} cannot be read ({error})'
  wanted = {name: entry for name, entry in wanted.items() if concerns(name)}
  # Sizes first, as they take no time.
  for name, (length, _) in wanted.items():
    if not (folder / name).exists():
      return f'{name} is missing'
    if (found := size(folder / name)) != length:
      return f'{name} has {found:,} bytes instead of {length:,}'
  return next((f'the content of {name} is not what was written'
               for name, found in _hashes(folder, wanted) if found != wanted[name][1]), None)


def _hashes(folder: Any, names: Iterable[str]) -> Iterator[tuple[str, str]]:
  """The hash of each file, in order."""
  names = list(names)
  with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
    yield from zip(names, pool.map(lambda name: _hash(folder / name), names))


def _hash(path: Any) -> str:
  """The SHA-256 of a file's content; of an object the bucket's own checksum, for which nothing is read."""
  if is_remote(path):
    return checksum(path)
  with path.open('rb') as file:
    return hashlib.file_digest(file, functools.partial(hashlib.sha256, usedforsecurity=False)).hexdigest()
