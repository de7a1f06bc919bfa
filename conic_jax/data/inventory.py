"""What a run's images are, so that a resume notices that they changed."""
import gzip
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from conic_jax.data.folder import Folder
from conic_jax.data.sources import Source
from conic_jax.errors import UserError
from conic_jax.terminal import printable

FILE, UNDECODABLE = 'images.jsonl.gz', 'undecodable.txt'


def entries(source: Source) -> Iterator[Any] | None:
  """JSON values that name a source's images in the order of their ids, such as [path, 1024, 'bytes'].

  None for a source that does not say: its `inventory` is optional.
  """
  inventory = getattr(source, 'inventory', None)
  return None if inventory is None else inventory()


def write(source: Source, folder: Path) -> None:
  """Writes a source's inventory to a run's folder, atomically."""
  found = entries(source)
  if found is None:
    return
  temporary = folder / f'{FILE}.tmp'
  with gzip.open(temporary, 'wt', compresslevel=1) as file:
    file.writelines(json.dumps(entry) + '\n' for entry in found)
  temporary.replace(folder / FILE)


def keep_places(source: Source, folder: Path, say: Callable[[str], None]) -> Source:
  """Keeps the ids of a run's images where files that could not be decoded were removed from their folder.

  Args:
    source: the images that are there.
    folder: the run's folder.
    say: prints a line.

  Returns:
    The source, in which removed files keep their places if the run's `UNDECODABLE` names them all.
  """
  if not isinstance(source, Folder) or not (folder / FILE).exists():
    return source
  try:
    with gzip.open(folder / FILE, 'rt') as file:
      before = [json.loads(line)[0] for line in file]
  except (OSError, EOFError, ValueError, LookupError, TypeError):
    return source  # `check` says that it cannot be read.
  gone = sorted(set(before) - set(source.paths()))
  if not gone or not all(map(_undecodable(folder), gone)):
    return source
  say(f'{len(gone)} images that could not be decoded are gone: their places stay empty.')
  return source.with_absent(gone)


def _undecodable(folder: Path) -> Callable[[str], bool]:
  """Whether the run has found that an image, by its path from the folder of images, cannot be decoded."""
  try:
    names = (folder / UNDECODABLE).read_text().splitlines()
  except OSError:
    names = []
  # The folder of images may have moved since: any end of a name may be the path.
  starts = {name: [0, *(place + 1 for place, letter in enumerate(name) if letter == '/')] for name in names}
  ends = {name[start:] for name in names for start in starts[name]}
  return lambda path: printable(path) in ends


def check(source: Source, folder: Path) -> str | None:
  """Compares a source with the inventory in a run's folder; undecodable images may have been mended.

  Returns:
    Why they could not be compared; None if they were.

  Raises:
    UserError: naming the first image that differs.
  """
  found = entries(source)
  if found is None or not (folder / FILE).exists():
    return None
  undecodable = _undecodable(folder)
  try:
    with gzip.open(folder / FILE, 'rt') as file:
      for index, (line, now) in enumerate(itertools.zip_longest(file, found)):
        if line != (None if now is None else json.dumps(now) + '\n'):
          before = None if line is None else json.loads(line)
          if before and now and before[0] == now[0] and undecodable(before[0]):
            continue
          raise UserError(f'The images are not those that this run began with: number {index} was '
                          f'{_words(before)} and is {_words(now)}. Bring them back, or give config.run '
                          'another folder to begin anew.')
  except (OSError, EOFError, ValueError) as error:
    return f'{folder / FILE} cannot be read ({error}): whether the images are still the same was not checked.'
  return None


def _words(entry: Any) -> str:
  match entry:
    case None:
      return 'none'
    case [str(name), int(amount), str(unit)]:
      return f"'{name}' ({amount:,} {unit})"
    case [str(name), *_]:
      return f"'{name}'"
  return str(entry)
