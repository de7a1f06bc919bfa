"""Images in a folder: flat, nested, or one subfolder per class.

The subfolders are classes only if every image lies directly in one of them and at least two of them
hold images; otherwise there are no labels. A class without images keeps its label, so that two
splits with the same subfolders have the same labels. Names that differ in how Unicode composes their
letters, as macOS and Linux do, are one class.
"""
import copy
import os
import unicodedata
from collections.abc import Iterator

import numpy as np

from conic_jax.data import files, parallel
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
      found = sorted(files.walk(self._root, skipped))
    except OSError as error:
      raise UserError(f'The folder of images {self._root} cannot be listed ({error.strerror}): set '
                      'config.data.dir and the split (a subfolder of it, or empty).') from None
    self._paths = [path for path, is_folder in found
                   if not is_folder and path.lower().endswith(EXTENSIONS)]
    if not self._paths:
      raise UserError(f'There are no images below {self._root}: files that end in '
                      f'{" ".join(EXTENSIONS)} were looked for; set config.data.dir and the split '
                      f'to a folder that holds some.{_left_out(skipped)}')
    reason = _why_unlabelled(self._paths)
    folders = {path: printable(unicodedata.normalize('NFC', path)) for path, is_folder in found
               if is_folder and '/' not in path and not reason}
    self.class_names = tuple(sorted(set(folders.values())))
    self.num_images, self.num_classes = len(self._paths), len(self.class_names)
    numbers = {name: number for number, name in enumerate(self.class_names)}
    self._labels = {path: numbers[name] for path, name in folders.items()}
    self.description = (reason or f'{self.num_classes} classes') + _left_out(skipped)

  def read(self, ids: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Reads images; see `sources.Source`."""
    paths = [self._paths[i] for i in ids]
    return parallel.map_blocks(self._read, paths), self._labels_of(paths)

  def labels(self) -> np.ndarray:
    """The labels of all images; see `sources.Source`."""
    return self._labels_of(self._paths)

  def name(self, id: int) -> str:
    """Path of the image."""
    return f'{self._root}/{self._paths[id]}'

  def with_absent(self, paths: list[str]) -> 'Folder':
    """The same folder with further images, which are `absent` and read as b''; ids follow all paths."""
    whole = copy.copy(self)
    whole._paths = sorted([*self._paths, *paths])
    whole.num_images = len(whole._paths)
    absent = set(paths)
    whole.absent = frozenset(id for id, path in enumerate(whole._paths) if path in absent)
    return whole

  def paths(self) -> list[str]:
    """The paths of all images from the folder, in the order of their ids."""
    return list(self._paths)

  def inventory(self) -> Iterator[list]:
    """[path, bytes, 'bytes'] of every image; remote files have their path alone; see `inventory.entries`."""
    if files.is_remote(self._root):
      return ([path] for path in self._paths)
    sizes = parallel.map_blocks(lambda path: files.size(f'{self._root}/{path}'), self._paths)
    return ([path, size, 'bytes'] for path, size in zip(self._paths, sizes, strict=True))

  def _labels_of(self, paths):
    return np.array([self._labels.get(path.partition('/')[0], -1) for path in paths], np.int32)

  def _read(self, path):
    try:
      return files.read(f'{self._root}/{path}')
    except OSError:
      return b''


def _why_unlabelled(paths: list[str]) -> str:
  """Why the subfolders are no classes, naming what does not fit if most images do; '' if they are."""
  holding = {path.rpartition('/')[0] for path in paths}
  classes = {name for name in holding if name and '/' not in name}
  if holding == classes and len(classes) > 1:
    return ''
  others = [path for path in paths if path.count('/') != 1]
  if len(classes) < 2 or 2 * len(others) > len(paths):
    return 'no classes'
  where = 'lies beside the class folders' if '/' not in others[0] else 'lies deeper than the class folders'
  more = f', as do {len(others) - 1:,} more' if len(others) > 1 else ''
  return f"no classes, because '{others[0]}' {where}{more}"


def _left_out(skipped: list[str]) -> str:
  return f'; left out: {listed(skipped)}' if skipped else ''
