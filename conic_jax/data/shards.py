"""The files that hold a data set's images: what a folder or a pattern names, and which are a split's."""
import os
import re
from collections.abc import Iterator

from conic_jax.data import files, kinds, parallel, urls
from conic_jax.errors import UserError, listed


def find(location: str, split: str, suffixes: tuple[str, ...], kind: str) -> list[str]:
  """Files in the order of a pattern's braces, else sorted.

  Args:
    location: a file, a folder, or a pattern such as shard-{000..999}.tar or part-*.tar; local or a URL.
    split: '' for all files; a subfolder; a part of the files' names, such as train in data/train-00.tar; or a
      pattern from the folder.
    suffixes: what the files' names end in.
    kind: what the files are, for messages: 'tar' or 'Parquet'.

  Raises:
    UserError: if there are none, or some that the pattern counts are missing.
  """
  if not location:
    raise UserError(f'Set config.data.dir to the {kind} files: a folder, a file, or a pattern such as '
                    f'/my/images/train-{{000..099}}{suffixes[0]}.')
  location = os.path.expanduser(location)
  if kinds.is_pattern(split) or split.endswith(suffixes):
    location, split = urls.join(location, split), ''
  every = _named(location, suffixes, kind)
  chosen = of_split(every, split) if split else every
  if not chosen:
    raise UserError(f"None of the {len(every)} {kind} files of {location} is of the split '{split}' "
                    f'({listed([path.rpartition("/")[2] for path in every], 3)}): set config.data.train and '
                    "config.data.test to subfolders, parts of the files' names or patterns, or to '' for "
                    'all.')
  return chosen


def of_split(paths: list[str], split: str) -> list[str]:
  """The files of a split: those in a folder of that name, or else those with it in their names."""
  start = len(urls.common_folder(paths))
  below = [path[start:] for path in paths]
  split = split.strip('/')
  inside = [path for path, rest in zip(paths, below) if f'/{split}/' in f'/{rest.rpartition("/")[0]}/']
  return inside or [path for path in paths if split in re.split(r'[^A-Za-z0-9]+', path.rpartition('/')[2])]


def stamps(paths: list[str], kind: str) -> list[list]:
  """[path, size, tag] of every file, by which an index knows what it was made of.

  Raises:
    UserError: naming those that are missing.
  """
  found = parallel.map_blocks(urls.stamp, paths, block=1)
  missing = [path for path, stamp in zip(paths, found) if stamp is None]
  if missing:
    raise UserError(f'{len(missing)} of {len(paths)} {kind} files are missing ({listed(missing, 3)}): copy '
                    'them there, or mend the pattern of config.data.dir.')
  return [[path, *stamp] for path, stamp in zip(paths, found) if stamp is not None]


def _named(location, suffixes, kind):
  if not kinds.is_pattern(location) or (not files.is_remote(location) and os.path.exists(location)):
    return _of_place(location, suffixes, kind)
  counted = list(dict.fromkeys(_numbered(location)))
  found = [path for name in counted for path in (urls.matching(name) if '*' in name else [name])]
  if not found or (len(counted) == len(found) and not any(parallel.map_blocks(urls.stamp, found, block=1))):
    raise UserError(f'The pattern {location} matches no file: mend config.data.dir, where {{000..999}} '
                    'counts and * stands for any letters.')
  return list(dict.fromkeys(found))


def _of_place(location, suffixes, kind):
  if location.lower().endswith(suffixes) and not urls.is_folder(location):
    return [location]
  try:
    found = [path for path in urls.below(location) if path.lower().endswith(suffixes)]
  except OSError as error:
    raise UserError(f'{location} cannot be listed ({error.strerror or error}): set config.data.dir to the '
                    f'{kind} files, their folder or a pattern.') from None
  if not found:
    raise UserError(f'There are no {kind} files below {location}: names that end in {" ".join(suffixes)} '
                    'were looked for; set config.data.dir to a folder that holds some, or a pattern.')
  return [f'{location.rstrip("/")}/{path}' for path in found]


def _numbered(pattern: str) -> Iterator[str]:
  """What a pattern with braces stands for: {000..999} counts, with as many digits; {a,b} lists."""
  before, opened, rest = pattern.partition('{')
  inside, closed, after = rest.partition('}')
  if not (opened and closed):
    yield pattern
    return
  first, dots, last = inside.partition('..')
  if dots and first.isdigit() and last.isdigit():
    some = [f'{number:0{len(first)}}' for number in range(int(first), int(last) + 1)]
  else:
    some = inside.split(',')
  for one in some:
    for end in _numbered(after):
      yield f'{before}{one}{end}'
