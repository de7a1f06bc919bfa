"""Manifests: the size and the hash of every file of a folder, so that damage is noticed."""
import functools
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FORMAT = 1
# Files hashed at the same time; hashing releases Python's lock.
_THREADS = 8

Manifest = dict[str, list]


def make(folder: Path) -> Manifest:
  """[size in bytes, SHA-256] of every file below a folder, by relative path."""
  names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())
  with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
    hashes = pool.map(lambda name: _hash(folder / name), names)
    return {name: [(folder / name).stat().st_size, found] for name, found in zip(names, hashes)}


def write(folder: Path, path: Path) -> None:
  """Writes the manifest of a folder to a file, atomically."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_text(json.dumps({'format': FORMAT, 'files': make(folder)}, indent=0) + '\n')
  temporary.replace(path)


def damage(folder: Path, path: Path, concerns: Callable[[str], bool] = lambda name: True) -> str | None:
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
    wanted = {name: [int(size), str(found)] for name, (size, found) in wanted.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    return f'its manifest {path} cannot be read ({error})'
  wanted = {name: entry for name, entry in wanted.items() if concerns(name)}
  # Sizes first, as they take no time.
  for name, (size, _) in wanted.items():
    if not (folder / name).is_file():
      return f'{name} is missing'
    if (found := (folder / name).stat().st_size) != size:
      return f'{name} has {found:,} bytes instead of {size:,}'
  with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
    hashes = pool.map(lambda name: _hash(folder / name), wanted)
    return next((f'the content of {name} is not what was written'
                 for (name, (_, hashed)), found in zip(wanted.items(), hashes) if found != hashed), None)


def _hash(path: Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, functools.partial(hashlib.sha256, usedforsecurity=False)).hexdigest()
