"""Images in Parquet files: a column of encoded images, or of Hugging Face's {bytes, path}.

Parquet has no way to one image: whoever reads one reads its row group. What was read last is kept, so that
images read in their order, as evaluations do, cost one read of each group, and so do images of one batch that
share one. Training reads in a random order: row groups should be small for it.
"""
import collections
import functools
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from conic_jax.data import class_labels, files, kinds, mapped, parallel, shards, urls
from conic_jax.errors import UserError

_IMAGES = 'image', 'img', 'jpg'  # Usual names.
_LABEL = 'label'
_KEPT = 1 << 28  # Bytes of row groups that stay in memory.
_FILES = 64  # Indexed at a time.
_FOOTERS = 256  # Of files, that stay in memory.
_AHEAD = 1 << 16


class Parquet:
  """The images of Parquet files, in their order.

  Args:
    location: a file, a folder, or a pattern; local or a URL.
    split: which of the files; see `shards.find`.
    cache: folder of the indexes.
    image: the column of images; '' takes the only one that is certain.
    label: the column of labels; '' takes the only one that is certain, 'none' none.

  Attributes:
    description: which columns are read.

  Raises:
    UserError: if there are no such files or columns, one is damaged, or labels are of unlike types.
  """

  def __init__(self, location: str, split: str, cache: str, image: str = '', label: str = ''):
    self._paths = shards.find(location, split, kinds.SUFFIXES['parquet'], 'Parquet')
    stamps = shards.stamps(self._paths, 'Parquet')
    self._sizes = [size for _, size, _ in stamps]
    origin = {'kind': 'parquet', 'files': stamps, 'image': image, 'label': label}
    table = mapped.load(cache, self._paths[0].rpartition('/')[2], origin,
                        functools.partial(_build, self._paths, image, label))
    facts = table.facts
    self._codes, self._image = table.parts['labels'], facts['image']
    self._group_ends = np.cumsum(table.parts['groups'])
    self._file_ends = np.cumsum(facts['groups'])  # In groups.
    self.num_images = len(self._codes)
    if not self.num_images:
      raise UserError(f'The {len(self._paths)} Parquet files of {location} have no rows.')
    self.class_names, self._label_of_code = class_labels.classes(facts['labels'], facts['names'], location)
    self.num_classes = len(self.class_names)
    self.description = (f"image '{self._image}', "
                        + (f"label '{facts['label']}'" if facts['label'] else 'no label'))
    self._groups = _Groups(self._read_group)
    self._footer = functools.lru_cache(_FOOTERS)(lambda path: _open(path).metadata)

  def read(self, ids: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Reads images; see `sources.Source`."""
    ids = np.asarray(ids, np.int64)
    groups, place = np.unique(np.searchsorted(self._group_ends, ids, side='right'), return_inverse=True)
    wanted = [np.flatnonzero(place == number) for number in range(len(groups))]
    work = list(zip(groups.tolist(), wanted, strict=True))
    found = parallel.map_blocks(lambda part: self._images(part[0], ids[part[1]]), work, block=1)
    images = [b''] * len(ids)
    for places, some in zip(wanted, found, strict=True):
      for index, image in zip(places.tolist(), some, strict=True):
        images[index] = image
    return images, self._labels_of(self._codes[ids])

  def labels(self) -> np.ndarray:
    """The labels of all images; see `sources.Source`."""
    return self._labels_of(self._codes)

  def name(self, id: int) -> str:
    """The file and the row in it, from 0."""
    group = int(np.searchsorted(self._group_ends, id, side='right'))
    file = int(np.searchsorted(self._file_ends, group, side='right'))
    return f'{self._paths[file]}:{id - self._first_row(file)}'

  def inventory(self) -> Iterator[list]:
    """The number of files, and [name and number of rows, bytes, 'bytes'] of each; see `inventory.entries`."""
    yield [f'{len(self._paths)} Parquet files, image {self._image}', self.num_images, 'images']
    start = len(urls.common_folder(self._paths))
    for file, (path, size) in enumerate(zip(self._paths, self._sizes, strict=True)):
      end = self._first_row(file + 1)
      yield [f'{path[start:]} with {end - self._first_row(file)} images', size, 'bytes']

  def _first_row(self, file):
    group = int(self._file_ends[file - 1]) if file else 0
    return int(self._group_ends[group - 1]) if group else 0

  def _labels_of(self, codes):
    return np.append(self._label_of_code, np.int32(-1))[codes]

  def _images(self, group, ids):
    begin = int(self._group_ends[group - 1]) if group else 0
    try:
      column = self._groups.get(group)
      return [column[row].as_py() or b'' for row in (ids - begin).tolist()]
    except (OSError, IndexError, pa.ArrowException):
      return [b''] * len(ids)

  def _read_group(self, group):
    file = int(np.searchsorted(self._file_ends, group, side='right'))
    inside = group - (int(self._file_ends[file - 1]) if file else 0)
    opened = _open(self._paths[file], self._footer(self._paths[file]))
    column = opened.read_row_group(inside, columns=[self._image], use_threads=False).column(0)
    return pc.struct_field(column, 'bytes') if pa.types.is_struct(column.type) else column


class _Groups:
  """The row groups that were read last, `_KEPT` bytes of them; threads share one read of a group."""

  def __init__(self, read):
    self._read = read
    self._kept: collections.OrderedDict[int, Any] = collections.OrderedDict()
    self._bytes = 0
    self._lock = threading.Lock()
    # Groups are large: as many are read at a time as cores can unpack.
    self._reading = threading.BoundedSemaphore(2 * parallel.cores())

  def get(self, group: int) -> pa.ChunkedArray:
    """The images of a group."""
    with self._lock:
      if group in self._kept:
        self._kept.move_to_end(group)
        return self._kept[group]
    with self._reading:
      column = self._read(group)
    with self._lock:
      if group not in self._kept:
        self._kept[group] = column
        self._bytes += column.nbytes
      while self._bytes > _KEPT and len(self._kept) > 1:
        self._bytes -= self._kept.popitem(last=False)[1].nbytes
    return column


def _open(path: str, footer: Any = None) -> pq.ParquetFile:
  if files.is_remote(path):
    return pq.ParquetFile(urls.stream(path, _AHEAD), metadata=footer, pre_buffer=True)
  return pq.ParquetFile(path, metadata=footer, memory_map=True)


def _build(paths, image, label, writer):
  codes, groups, names, chosen = class_labels.LabelCodes(), [], [], ('', '')
  writer.add('groups', [])
  writer.add('labels', [])
  for some in mapped.blocks(paths, _FILES):
    indexes = parallel.map_blocks(lambda path: _index(path, image, label), some, block=1)
    for path, (columns, named, sizes, values, places) in zip(some, indexes, strict=True):
      chosen = chosen if chosen[0] else columns
      if columns != chosen:
        raise UserError(f"{path} has image '{columns[0]}' and label '{columns[1]}' where {paths[0]} has "
                        f"'{chosen[0]}' and '{chosen[1]}': name others of config.data.dir, or set "
                        'config.data.image and config.data.label to columns that all files have.')
      names = names if groups else named
      if named != names:
        raise UserError(f'{path} names its classes otherwise than {paths[0]}: leave the files of other data '
                        'sets out of config.data.dir.')
      writer.add('groups', sizes)
      writer.add('labels', np.append(codes.encode(values, path), -1)[places])
      groups.append(len(sizes))
  return {'groups': groups, 'labels': codes.values, 'names': names, 'image': chosen[0], 'label': chosen[1]}


def _index(path, image, label):
  """The columns of a file, its class names, the sizes of its groups, its labels, and each row's place."""
  try:
    opened = _open(path)
    schema, footer = opened.schema_arrow, opened.metadata
    features = _features(schema)
    columns = _image_column(schema, features, image, path), _label_column(schema, features, label, path)
    sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    named = list(features.get(columns[1], {}).get('names') or [])
    if not columns[1]:
      return columns, named, sizes, [], np.full(footer.num_rows, -1)
    column = opened.read(columns=[columns[1]], use_threads=False).column(0)
  except (OSError, pa.ArrowException) as error:
    raise UserError(f'{path} cannot be read as Parquet ({str(error).splitlines()[0]}): it is cut short or '
                    'damaged; copy it again.') from None
  if pa.types.is_dictionary(column.type):
    column = column.cast(column.type.value_type)
  values = pc.unique(column).drop_null() if column.type != pa.null() else pa.array([], pa.string())
  places = (pc.index_in(column, value_set=values).fill_null(-1).to_numpy() if len(values)
            else np.full(len(column), -1))
  values = [int(value) if isinstance(value, bool) else value for value in values.to_pylist()]
  return columns, named, sizes, values, places


def _features(schema):
  """What Hugging Face says of the columns."""
  try:
    found = json.loads((schema.metadata or {})[b'huggingface'])['info']['features']
    return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
  except (KeyError, ValueError, TypeError, AttributeError):
    return {}


def _image_column(schema, features, asked, path):
  columns = {field.name: (f'{field.name}.bytes' if pa.types.is_struct(field.type) else field.name)
             for field in schema if _holds_images(field.type)}
  there = f'its columns are {", ".join(f"{field.name} ({_short(field.type)})" for field in schema)}'
  if asked:
    if asked not in columns:
      raise UserError(f"config.data.image is '{asked}', which is no column of images of {path}: {there}.")
    return columns[asked]
  known = [name for name in columns if features.get(name, {}).get('_type') == 'Image']
  for certain in [name for name in _IMAGES if name in columns][:1], known, list(columns):
    if len(certain) == 1:
      return columns[certain[0]]
  if columns:
    raise UserError(f'{path} has {len(columns)} columns that may be the image: set config.data.image to one; '
                    f'{there}.')
  raise UserError(f'{path} has no image column, which has binary values or {{bytes, path}}: {there}; name '
                  'other files in config.data.dir.')


def _label_column(schema, features, asked, path):
  """The column of labels, '' for none."""
  if asked == class_labels.NO_LABEL:
    return ''
  there = f'its columns are {", ".join(f"{field.name} ({_short(field.type)})" for field in schema)}'
  if asked:
    if asked not in schema.names or not _holds_labels(schema.field(asked).type):
      raise UserError(f"config.data.label is '{asked}', which is no column of numbers or names of {path}: "
                      f"{there}; set it to one that is, or to 'none'.")
    return asked
  known = [name for name in schema.names if features.get(name, {}).get('_type') == 'ClassLabel']
  if _LABEL in schema.names and _holds_labels(schema.field(_LABEL).type):
    return _LABEL
  if len(known) == 1:
    return known[0]
  if known:
    raise UserError(f"{path} has {len(known)} columns that may be the label: set config.data.label to one, "
                    f"or to 'none'; {there}.")
  return ''


def _short(type):
  return 'bytes, path' if pa.types.is_struct(type) and _holds_images(type) else str(type)[:40]


def _is_binary(type):
  return pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_binary_view(type)


def _holds_images(type):
  if not pa.types.is_struct(type):
    return _is_binary(type)
  return type.get_field_index('bytes') >= 0 and _is_binary(type.field('bytes').type)


def _holds_labels(type):
  type = type.value_type if pa.types.is_dictionary(type) else type
  return (pa.types.is_integer(type) or pa.types.is_boolean(type) or pa.types.is_string(type)
          or pa.types.is_large_string(type) or pa.types.is_null(type))
