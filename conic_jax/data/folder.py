"""Images in a folder: flat, nested, or one subfolder per class.

The subfolders are classes only if every image lies directly in one of them and at least two of them
hold images; otherwise there are no labels. A class without images keeps its label, so that two
splits with the same subfolders have the same labels. Names that differ in how Unicode composes their
letters, as macOS and Linux do, are one class.
"""
import copy
import functools
import heapq
import itertools
import os
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np

from conic_jax.data import files, kinds, mapped, parallel
from conic_jax.errors import UserError, listed
from conic_jax.terminal import printable

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif')


class Folder:
  """Source of all images below a folder, local or gs://, sorted by relative path.

  Args:
    root: the folder.
    split: the subfolder to read, '' for the whole folder.

  Attributes:
    description: the number of classes, or why there are none, and what was left out.
    absent: ids of images that are known not to be there.

  Raises:
    UserError: if the folder is missing or holds no images.
  """

  absent: frozenset[int] = frozenset()

  def __init__(self, root: str, split: str):
    if not root:
      raise UserError("config.data.name is 'folder': set config.data.dir to the folder of images.")
    self._root = os.path.join(os.path.expanduser(root), split).rstrip('/')
    skipped: list[str] = []
    try:
      self._table = mapped.temporary(functools.partial(_list, self._root, skipped))
    except OSError as error:
      raise UserError(f'The folder of images {self._root} cannot be listed ({error.strerror}): set '
                      'config.data.dir and the split (a subfolder of it, or empty).') from None
    facts = self._table.facts
    self.num_images = len(self._table.parts['ends'])
    if not self.num_images:
      raise UserError(f'There are no images below {self._root}: files that end in '
                      f'{" ".join(EXTENSIONS)} were looked for; set config.data.dir and the split '
                      f'to a folder that holds some.{_instead(facts["others"])}{_left_out(skipped)}')
    reason = facts['why_unlabelled']
    folders = {} if reason else {
      path: printable(unicodedata.normalize('NFC', path)) for path in facts['folders']}
    self.class_names = tuple(sorted(set(folders.values())))
    self.num_classes = len(self.class_names)
    numbers = {name: number for number, name in enumerate(self.class_names)}
    self._labels = {path: numbers[name] for path, name in folders.items()}
    self.description = (reason or f'{self.num_classes} classes') + _left_out(skipped)

  def read(self, ids: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Reads images; see `sources.Source`."""
    paths = [self._table.string(i) for i in np.asarray(ids).tolist()]
    return parallel.map_blocks(self._read, paths), np.array([*map(self._label_of, paths)], np.int32)

  def labels(self) -> np.ndarray:
    """The labels of all images; see `sources.Source`."""
    if not self.num_classes:
      return np.full(self.num_images, -1, np.int32)
    return np.fromiter(map(self._label_of, self._table.strings()), np.int32, self.num_images)

  def name(self, id: int) -> str:
    """Path of the image."""
    return f'{self._root}/{self._table.string(id)}'

  def with_absent(self, paths: list[str]) -> 'Folder':
    """The same folder with further images, which are `absent` and read as b''; ids follow all paths."""
    whole = copy.copy(self)
    absent: list[int] = []

    def merge(writer: mapped.Writer) -> dict[str, Any]:
      merged = heapq.merge(((path, False) for path in self.paths()), ((path, True) for path in sorted(paths)))
      places = itertools.count()
      for block in mapped.blocks(merged):
        writer.add_strings([path for path, _ in block])
        absent.extend([place for (_, is_absent), place in zip(block, places) if is_absent])
      return self._table.facts

    whole._table = mapped.temporary(merge)
    whole.num_images, whole.absent = len(whole._table.parts['ends']), frozenset(absent)
    return whole

  def paths(self) -> Iterator[str]:
    """The paths of all images from the folder, in the order of their ids, which is sorted."""
    return self._table.strings()

  def inventory(self) -> Iterator[list]:
    """[path, bytes, 'bytes'] of every image; remote files have their path alone; see `inventory.entries`."""
    if files.is_remote(self._root):
      yield from ([path] for path in self.paths())
      return
    for block in mapped.blocks(self.paths()):
      sizes = parallel.map_blocks(lambda path: files.size(f'{self._root}/{path}'), block)
      yield from ([path, size, 'bytes'] for path, size in zip(block, sizes, strict=True))

  def _label_of(self, path):
    return self._labels.get(path.partition('/')[0], -1)

  def _read(self, path):
    try:
      return files.read(f'{self._root}/{path}')
    except OSError:
      return b''


def _list(root: str, skipped: list[str], writer: mapped.Writer) -> dict[str, Any]:
  """Writes the paths of all images; notes the subfolders, and why they are no classes or ''."""
  folders, classes, others, strays, first_stray, images = [], set(), set(), 0, '', 0

  def paths() -> Iterator[str]:
    nonlocal strays, first_stray, images
    for path, is_folder in files.walk(root, skipped):
      if is_folder:
        folders.extend([] if '/' in path else [path])
      elif path.lower().endswith(EXTENSIONS):
        images += 1
        if path.count('/') == 1:
          classes.add(path.partition('/')[0])
        else:
          strays, first_stray = strays + 1, first_stray or path
        yield path
      else:
        others.add(kinds.kind_of(path))

  writer.add_strings([])
  for block in mapped.blocks(paths()):
    writer.add_strings(block)
  return {'folders': folders, 'others': others,
          'why_unlabelled': _why_unlabelled(len(classes), images, strays, first_stray)}


def _why_unlabelled(classes: int, images: int, strays: int, first_stray: str) -> str:
  """Why the subfolders are no classes, naming what does not fit if most images do; '' if they are.

  Args:
    classes: the number of subfolders that directly hold images.
    images: the number of images.
    strays: how many of them are not directly in a subfolder; the first is `first_stray`.
  """
  if not strays and classes > 1:
    return ''
  if classes < 2 or 2 * strays > images:
    return 'no classes'
  where = 'lies beside the class folders' if '/' not in first_stray else 'lies deeper than the class folders'
  more = f', as do {strays - 1:,} more' if strays > 1 else ''
  return f"no classes, because '{first_stray}' {where}{more}"


def _instead(others: set[str]) -> str:
  """A sentence for a folder without images that has files of another kind of source."""
  kind = next((kind for kind in ('wds', 'parquet') if kind in others), '')
  if not kind:
    return ''
  return f" It has {kinds.SUFFIXES[kind][0]} files: for those set config.data.name to '{kind}'."


def _left_out(skipped: list[str]) -> str:
  return f'; left out: {listed(skipped)}' if skipped else ''
