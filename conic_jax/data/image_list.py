"""Images that a list names: paths in the lines of a text, or paths and labels in a CSV file."""
import csv
import functools
import io
import itertools
import os
from collections.abc import Iterator

import numpy as np

from conic_jax.data import class_labels, files, kinds, mapped, parallel, shards, urls
from conic_jax.errors import UserError, listed
from conic_jax.terminal import printable

_DELIMITERS = {'.csv': ',', '.tsv': '\t'}
_PATHS = 'path', 'image', 'image_path', 'file', 'file_name', 'filename', 'filepath'  # Usual names of columns.
_LABELS = 'label', 'class'


class ImageList:
  """The images of a list, in its order. Relative paths are from the folder of the list.

  Args:
    location: the list, or a folder with one for each split; local or a URL.
    split: '' for the list itself; else the name of a list in the folder, with or without its ending.
    cache: folder of the indexes.
    image: the column of paths; '' is path, image, file_name and the like, or the first without a header.
    label: the column of labels; '' is label or class, or the second without a header; 'none' is none.

  Attributes:
    description: the list and the number of classes.

  Raises:
    UserError: if there is no such list, or it names missing files, one twice, or labels of unlike types.
  """

  def __init__(self, location: str, split: str, cache: str, image: str = '', label: str = ''):
    self._list = _find(location, split)
    self._folder = self._list.rpartition('/')[0] or '.'
    origin = {'kind': 'list', 'files': shards.stamps([self._list], 'list'), 'image': image, 'label': label}
    self._table = mapped.load(cache, self._list.rpartition('/')[2], origin,
                              functools.partial(_build, self._list, self._folder, image, label))
    self._codes = self._table.parts['labels']
    self.num_images = len(self._codes)
    if not self.num_images:
      raise UserError(f'{self._list} names no image: give a path in each line.')
    self.class_names, self._label_of_code = class_labels.classes(self._table.facts['labels'], (), self._list)
    self.num_classes = len(self.class_names)
    self.description = f'a list, {self.num_classes or "no"} classes'

  def read(self, ids: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Reads images; see `sources.Source`."""
    paths = [self.name(id) for id in np.asarray(ids).tolist()]
    return parallel.map_blocks(_read, paths), self._labels_of(self._codes[ids])

  def labels(self) -> np.ndarray:
    """The labels of all images; see `sources.Source`."""
    return self._labels_of(self._codes)

  def name(self, id: int) -> str:
    """Path of the image."""
    return urls.join(self._folder, self._table.string(id))

  def inventory(self) -> Iterator[list]:
    """[path, bytes, 'bytes'] of every image; remote files have their path alone; see `inventory.entries`."""
    for block in mapped.blocks(self._table.strings()):
      sizes = parallel.map_blocks(lambda path: _size(urls.join(self._folder, path)), block)
      yield from ([path] if size is None else [path, size, 'bytes']
                  for path, size in zip(block, sizes, strict=True))

  def _labels_of(self, codes):
    return np.append(self._label_of_code, np.int32(-1))[codes]


def has_list(folder: str, split: str) -> bool:
  """Whether a folder has a list for a split."""
  return bool(_lists(folder, split))


def _lists(folder, split):
  place = f'{folder.rstrip("/")}/{split}'
  return [path for path in (place, *(f'{place}{suffix}' for suffix in kinds.SUFFIXES['list']))
          if not urls.is_folder(path) and urls.stamp(path)]


def _find(location, split):
  if not location:
    raise UserError("config.data.name is 'list': set config.data.dir to the list of images, a .txt or .csv.")
  location = os.path.expanduser(location)
  if not split:
    if urls.is_folder(location):
      raise UserError(f'{location} is a folder: set config.data.dir to the list itself, or config.data.train '
                      'and config.data.test to the names of lists in it.')
    return location
  found = _lists(location, split)
  if len(found) != 1:
    problem = f'has several lists of the split, {listed(found)}' if found else f"has no list '{split}'"
    raise UserError(f"{location} {problem}: set config.data.train and config.data.test to the names of lists "
                    "in it, such as train.csv, or to '' where config.data.dir is the list.")
  return found[0]


def _build(path, folder, image, label, writer):
  codes, hashes, missing = class_labels.LabelCodes(), [], []
  writer.add('labels', [])
  writer.add_strings([])
  for rows in mapped.blocks(_rows(path, image, label)):
    paths = [row[0] for row in rows]
    missing += _missing(paths, folder)
    hashes.append(np.array([hash(name) for name in paths], np.int64))
    writer.add('labels', codes.encode([row[1] for row in rows], path))
    writer.add_strings(paths)
  if missing:
    raise UserError(_bring_back(missing, path, folder))
  _check_once(path, image, label, np.concatenate([np.empty(0, np.int64), *hashes]))
  return {'labels': codes.values}


def _rows(path, image, label):
  """(path, label or None) of every line but the header."""
  delimiter = _DELIMITERS.get(os.path.splitext(path)[1].lower())
  try:
    with io.TextIOWrapper(urls.stream(path), 'utf-8-sig', 'surrogateescape', newline='') as text:
      if delimiter is None:
        yield from ((line.strip('\r\n'), None) for line in text if line.strip())
      else:
        yield from _table_rows(path, csv.reader(text, delimiter=delimiter), image, label)
  except (OSError, csv.Error) as error:
    raise UserError(f'{path} cannot be read ({error}): it must be a text with a path in each line.') from None


def _table_rows(path, lines, image, label):
  first = next(lines, [])
  names = [cell.strip() for cell in first]
  named = bool(image) or label not in ('', class_labels.NO_LABEL)
  has_header = named or any(name.lower() in _PATHS for name in names)
  place, label_place = 0, None
  if has_header:
    place, label_place = (_column(names, image, _PATHS, 'image', path),
                          _column(names, label, _LABELS, 'label', path))
    if place is None:
      raise UserError(f'{path} has no column of paths, only {", ".join(names)}: set config.data.image to it.')
  elif len(names) > 2:
    raise UserError(f'{path} has {len(names)} columns: begin it with a line that names them, such as '
                    'path,label.')
  elif len(names) == 2 and label != class_labels.NO_LABEL:
    label_place = 1
  for line in lines if has_header else itertools.chain([first], lines):
    if not line:
      continue
    if len(line) != len(names):
      raise UserError(f'Line {lines.line_num} of {path} has {len(line)} fields where the first has '
                      f'{len(names)}: mend it; a field with a comma in it must be in quotes.')
    yield line[place].strip(), None if label_place is None else class_labels.from_text(line[label_place])


def _column(names, asked, usual, kind, path):
  if kind == 'label' and asked == class_labels.NO_LABEL:
    return None
  if asked and asked not in names:
    raise UserError(f"config.data.{kind} is '{asked}', which the first line of {path} does not name: it has "
                    f'{", ".join(names)}.')
  lower = [name.lower() for name in names]
  return names.index(asked) if asked else next((lower.index(name) for name in usual if name in lower), None)


def _missing(paths, folder):
  sizes = parallel.map_blocks(lambda path: _size(urls.join(folder, path)), paths)
  return [path for path, size in zip(paths, sizes) if size is not None and size < 0]


def _bring_back(missing, path, folder):
  more = '; a list with labels must end in .csv' if path.endswith('.txt') and ',' in missing[0] else ''
  return (f'{path} names {len(missing):,} files that are missing ({printable(listed(missing, 3))}): bring '
          f'them back, or take their lines out; relative paths are from {folder}{more}.')


def _check_once(path, image, label, hashes):
  """Raises a `UserError` if a path is named twice; only paths with equal hashes are compared."""
  hashes.sort()
  equal = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
  if not equal:
    return
  seen: set[str] = set()
  for name, _ in _rows(path, image, label):
    if hash(name) in equal:
      if name in seen:
        raise UserError(f'{path} names {printable(name)} more than once: take the other lines out, since '
                        'every image is a class of its own.')
      seen.add(name)


def _size(path):
  """Bytes of a local file, -1 if it is missing; None for a remote one, which would cost a request."""
  return None if files.is_remote(path) else files.size(path)


def _read(path):
  try:
    return urls.read_whole(path)
  except OSError:
    return b''
