"""Multi-label images: TFDS data sets with lists of labels, folders with a CSV file, or single-label sources.

The CSV file starts with the line `image,labels`. Every other line has the path of an image relative to the
split's folder, with / as separator, and the names of its labels separated by ; (possibly none):

  image,labels
  beach/01.jpg,person;boat
  beach/02.jpg,
"""
import csv
import io
import os
import posixpath
from collections.abc import Sequence

import numpy as np
from google.protobuf.message import DecodeError

from conic_jax.data import files, sources
from conic_jax.data.lazy_tensorflow import tf
from conic_jax.data.sources import Source
from conic_jax.data.tfds_source import TfdsSource, label_list
from conic_jax.errors import UserError, listed

_HEADER = ['image', 'labels']
_BLOCK = 256  # TFDS examples read at a time to get their labels.
_DIFFICULT = 'is_difficult'


class MultilabelSource:
  """A `sources.Source` with any number of labels per image, in `targets`; `labels()` is -1 throughout.

  Args:
    images: source of the images.
    targets: int8 [N, C], 1 where a class is present, 0 where it is absent, -1 where all its objects in the
      image are marked as difficult.
    class_names: names of the C classes.
  """

  def __init__(self, images: Source, targets: np.ndarray, class_names: tuple[str, ...]):
    self._images = images
    self.targets, self.class_names = targets, class_names
    self.num_images, self.num_classes = targets.shape

  def read(self, ids: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Reads images; see `sources.Source`."""
    return self._images.read(ids)[0], self.labels()[ids]

  def labels(self) -> np.ndarray:
    """-1 for all images; see `targets`."""
    return np.full(self.num_images, -1, np.int32)

  def name(self, id: int) -> str:
    """Human-readable name of the image."""
    return self._images.name(id)


def open_splits(data, splits: Sequence[str], labels: str) -> list[MultilabelSource]:
  """Opens splits of a multi-label data set, all with the same classes.

  Args:
    data: config node as for `sources.open_source`: 'folder'; a TFDS data set with a list of labels, such as
      `tags`, or as voc/2007 whose `objects` have a `label` and `is_difficult`; or any source with one
      label per image.
    splits: the splits.
    labels: path of the CSV file relative to each split's folder; '' if its subfolders are the classes. Only
      used for 'folder'.

  Returns:
    One source per split. With CSV files, the classes are all labels in the files of all splits, sorted.

  Raises:
    UserError: if there are no such images, or their labels are missing or invalid.
  """
  images = [sources.open_source(data, split) for split in splits]
  if data.name == 'folder' and labels:
    roots = [os.path.join(os.path.expanduser(data.dir), split) for split in splits]
    return _folders(images, roots, labels)
  if isinstance(images[0], TfdsSource) and (key := label_list(images[0], getattr(data, 'label', ''))):
    return [_with_objects(source, key) for source in images]
  if len({source.class_names for source in images}) > 1 or not images[0].num_classes:
    raise UserError(f"The images of '{data.name}' have no labels, or other ones in each split: set "
                    "config.data.name to a data set that has, such as 'voc/2007', or to 'folder' with a CSV "
                    'file of labels.')
  return [MultilabelSource(source, _one_hot(source), source.class_names) for source in images]


def _folders(images, roots, labels):
  tables = [_table(os.path.join(root, labels), [os.path.relpath(source.name(i), root)
                                                for i in range(source.num_images)])
            for source, root in zip(images, roots, strict=True)]
  class_names = tuple(sorted({name for table in tables for names in table for name in names}))
  if not class_names:
    raise UserError(f'The files {labels} of {" and ".join(roots)} name no label: every line has an image and '
                    'its labels, such as beach/01.jpg,person;boat.')
  columns = {name: column for column, name in enumerate(class_names)}
  opened = []
  for source, table in zip(images, tables, strict=True):
    targets = np.zeros((len(table), len(columns)), np.int8)
    for row, names in zip(targets, table, strict=True):
      row[[columns[name] for name in names]] = 1
    opened.append(MultilabelSource(source, targets, class_names))
  return opened


def _table(path, images):
  """The labels of each image, in the order of `images`."""
  rows = _rows(path)
  known, named = set(images), [image for image, _ in rows]
  repeated = {image for image, count in zip(*np.unique(named, return_counts=True)) if count > 1}
  _refuse(repeated, f'images have several lines in {path}', 'give each one')
  _refuse(set(named) - known, f'images of {path} are missing beside it',
          'mend their files or their paths, which have / between folders')
  _refuse(known - set(named), f'images have no line in {path}',
          'give each one, without labels where none is present')
  labels = dict(rows)
  return [labels[image] for image in images]


def _rows(path):
  """(image, labels) of every line except the header."""
  try:
    text = files.read(path).decode('utf-8-sig')
  except OSError:
    raise UserError(f'{path} cannot be read: set config.svm.labels to the CSV file of labels, as it is named '
                    'in the folder of every split.') from None
  except UnicodeDecodeError:
    raise UserError(f'{path} is not text in UTF-8: save it as such.') from None
  lines = csv.reader(io.StringIO(text, newline=''))
  header = next(lines, [])
  if header != _HEADER:
    raise UserError(f"{path} begins with '{','.join(header)}': its first line must be "
                    f"'{','.join(_HEADER)}'.")
  rows = []
  for line in lines:
    if line and len(line) != len(_HEADER):
      raise UserError(f'Line {lines.line_num} of {path} has {len(line)} fields: it must have two, an image '
                      'and its labels with ; between them.')
    if line:
      labels = [label.strip() for label in line[1].split(';')]
      if joined := next((label for label in labels if ',' in label), None):
        raise UserError(f"Line {lines.line_num} of {path} has the label '{joined}': write ; between labels, "
                        'and no comma in the name of one.')
      rows.append((posixpath.normpath(line[0].strip()), [label for label in labels if label]))
  return rows


def _refuse(images, what, remedy):
  if images:
    raise UserError(f'{len(images)} {what}: {remedy} ({listed(sorted(images))}).')


def _one_hot(images):
  return (images.labels()[:, None] == np.arange(images.num_classes)[None]).astype(np.int8)


def _with_objects(images, key):
  class_names = tuple(images.features[key].feature.names)
  targets = np.zeros((images.num_images, len(class_names)), np.int8)
  for start in range(0, images.num_images, _BLOCK):
    ids = np.arange(start, min(start + _BLOCK, images.num_images))
    for id, record in zip(ids, images.records(ids), strict=True):
      labels, difficult = _labels(record, key)
      targets[id, labels[difficult]] = -1
      targets[id, labels[~difficult]] = 1
  return MultilabelSource(images, targets, class_names)


def _labels(record, key):
  """Labels of an example, int [n], and which of them belong to objects marked as difficult, bool [n]."""
  try:
    features = tf.train.Example.FromString(record).features.feature
  except DecodeError:
    features = tf.train.Example().features.feature
  labels = np.array(features[key].int64_list.value, np.int64)
  difficult = np.array(features[f'{key.rpartition("/")[0]}/{_DIFFICULT}'].int64_list.value, bool)
  return labels, difficult if len(difficult) == len(labels) else np.zeros(len(labels), bool)
