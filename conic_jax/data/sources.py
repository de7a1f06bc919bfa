"""Image sources: their common interface, and opening the one that a config names."""
import os
import types
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from conic_jax.data import files, folder, image_list, kinds, photos, shards, webdataset
from conic_jax.errors import UserError
from conic_jax.extensions import own_part
from conic_jax.home import cache_folder


class Source(Protocol):
  """Encoded images, read by id.

  Attributes:
    num_images: N; ids are 0 … N - 1, the same every time the source is opened.
    num_classes: number of classes, 0 without labels.
    class_names: their names, by label.
  """
  num_images: int
  num_classes: int
  class_names: tuple[str, ...]

  def read(self, ids: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Reads images.

    Args:
      ids: int [b].

    Returns:
      Their encoded bytes, b'' for unreadable ones; labels, int32 [b], -1 for none.
    """
    ...

  def labels(self) -> np.ndarray:
    """The labels of all images, int32 [N], -1 for none."""
    ...

  def name(self, id: int) -> str:
    """Human-readable name of the image, such as its path."""
    ...

  # A source may also have `inventory`, by which a resumed run notices that its images changed (see
  # `inventory.entries`), and `description`, which says what is read in the first line of a run.


def open_source(data, split: str) -> Source:
  """Opens the source that a config names.

  Args:
    data: config node with `name` ('photos', 'folder', 'wds', 'parquet', 'list', a TFDS name such as 'cifar10'
      or 'name/config:version', or a module with a function like this one), `dir` (the folder, the file or
      the pattern of files, or TFDS's data_dir; '' for TFDS's default), `cache` (the folder of indexes; '' for
      ~/.cache/conic_jax), and optionally `image` and `label` (features of a TFDS data set, columns of Parquet
      files and lists, endings in tar files).
    split: a TFDS split expression, a subfolder ('' for the folder itself), a part of the files' names, or
      'train' or 'test'.

  Raises:
    UserError: if there are no such images.
  """
  if open_own := own_part(data.name, 'open_source'):
    return open_own(data, split)
  if data.name == 'photos':
    return photos.Photos(split)
  if data.name == 'folder':
    return folder.Folder(data.dir, split)
  if data.name in kinds.SUFFIXES:
    return _in_files(data, split)
  from conic_jax.data import tfds_source  # Takes a while, and most images are in folders.
  return tfds_source.TfdsSource(data.name, data.dir, split, data.cache or str(cache_folder()),
                                image=getattr(data, 'image', ''), label=getattr(data, 'label', ''))


def _in_files(data, split):
  given = {name: getattr(data, name, '') for name in ('image', 'label')}
  if data.name == 'parquet':
    from conic_jax.data import parquet  # Takes a while.
    return parquet.Parquet(data.dir, split, data.cache or str(cache_folder()), **given)
  kind = {'wds': webdataset.WebDataset, 'list': image_list.ImageList}[data.name]
  return kind(data.dir, split, data.cache or str(cache_folder()), **given)


def open_path(path: str) -> Source:
  """Opens the images that a path names without a config: a folder, a list, or tar or Parquet files.

  Raises:
    UserError: if there are no such images.
  """
  data = types.SimpleNamespace(name=kinds.kind_of(path), dir=path, cache='', image='', label='')
  return open_source(data, '')


def splits_of(data, names: Sequence[str]) -> set[str]:
  """Which of some splits a source has: subfolders, files that have the split in their name, or lists."""
  if not data.dir:
    return set()
  location = os.path.expanduser(data.dir)
  try:
    if data.name == 'folder':
      return files.folders(location) & set(names)
    if data.name == 'list':
      return {name for name in names if image_list.has_list(location, name)}
    if data.name in kinds.SUFFIXES:
      paths = shards.find(location, '', kinds.SUFFIXES[data.name], data.name)
      return {name for name in names if shards.of_split(paths, name)}
  except UserError:
    pass  # Who opens the source says so.
  return set()


class Subset:
  """A subset of a source, with its own ids from 0.

  Args:
    source: the full source.
    ids: int [n], the chosen images, in order.
  """

  def __init__(self, source: Source, ids: np.ndarray):
    self._source, self._ids = source, np.asarray(ids)
    self.num_images = len(self._ids)
    self.num_classes, self.class_names = source.num_classes, source.class_names

  def read(self, ids: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Reads images; see `Source`."""
    return self._source.read(self._ids[np.asarray(ids)])

  def labels(self) -> np.ndarray:
    """The labels of these images; see `Source`."""
    return self._source.labels()[self._ids]

  def name(self, id: int) -> str:
    """Name of the image in the full source."""
    return self._source.name(int(self._ids[id]))
