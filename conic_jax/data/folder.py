"""Images in a folder: flat, nested, or one subfolder per class.

The subfolders are classes only if every image lies directly in one of them and at least two of them
hold images; otherwise there are no labels. A class without images keeps its label, so that two
splits with the same subfolders have the same labels.
"""
import os
from collections.abc import Iterator

import numpy as np

from conic_jax.data import files, parallel
from conic_jax.errors import UserError

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif')


class Folder:
  """Source of all images below a folder, local or gs://, sorted by relative path.

  Args:
    root: the folder.
    split: the subfolder to read, '' for the whole folder.

  Raises:
    UserError: if the folder is missing or holds no images.
  """

  def __init__(self, root: str, split: str):
    if not root:
      raise UserError("config.data.name is 'folder': set config.data.dir to the folder of images.")
    self._root = os.path.join(os.path.expanduser(root), split).rstrip('/')
    try:
      found = sorted(files.walk(self._root))
    except OSError as error:
      raise UserError(f'The folder of images {self._root} cannot be listed ({error.strerror}): set '
                      'config.data.dir and the split (a subfolder of it, or empty).') from None
    self._paths = [path for path, is_folder in found
                   if not is_folder and path.lower().endswith(EXTENSIONS)]
    if not self._paths:
      raise UserError(f'There are no images below {self._root}: files that end in '
                      f'{" ".join(EXTENSIONS)} were looked for; set config.data.dir and the split '
                      'to a folder that holds some.')
    holding = {path.rpartition('/')[0] for path in self._paths}
    labelled = len(holding) > 1 and all(name and '/' not in name for name in holding)
    self.class_names = tuple(path for path, is_folder in found
                             if labelled and is_folder and '/' not in path)
    self.num_images, self.num_classes = len(self._paths), len(self.class_names)
    self._labels = {name: label for label, name in enumerate(self.class_names)}

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
