"""Data sets prepared by TensorFlow Datasets, read by id; nothing is downloaded."""
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf.message import DecodeError

from conic_jax.data import files, parallel, tfrecord
from conic_jax.data.lazy_tensorflow import tf
from conic_jax.data.tfds_builder import open_builder, shards_of
from conic_jax.errors import UserError

NO_LABEL = 'none'
_IMAGES = 'image', 'image_left'  # Usual names; of a stereo pair the left one is.
_BLOCK = 1024  # Records in memory while reading labels.
_Example = tf.train.Example  # Threads must not be the first to use it.


class TfdsSource:
  """The images of a split expression; ids follow the order of the shards.

  Args:
    name: 'cifar10', or 'name/config:version'.
    data_dir: TFDS's data_dir, '' for its default.
    split: 'train', 'train[:10%]', 'train+test' …
    cache: folder of the offset indexes of TFRecord files.
    masks: whether to read the label maps instead of the images.
    image, label: keys of features, nested ones with /; '' takes the only one that is certain. A label may
      also be 'none', or a list of labels, which `multilabel` reads.

  Attributes:
    features: the features of an example, by key.
    description: which image and label are read.

  Raises:
    UserError: if the data set, the split or an image feature is missing or not certain, or files are damaged.
  """

  def __init__(self, name: str, data_dir: str, split: str, cache: str, masks: bool = False, image: str = '',
               label: str = ''):
    builder = open_builder(name, data_dir)
    self._shards, self._full_name = shards_of(builder, split), builder.info.full_name
    self.features = _flatten(builder.info.features)
    self._asked_image = image
    self._image = _choose(self.features, 'image', _IMAGES, _is_image, image, prefers=_is_rgb)
    if masks:
      self._image = _mask_of(self.features, self._image)
      if self._image is None:
        raise UserError(f"The data set '{name}' has no label map, only {', '.join(self.features)}: choose "
                        "one that has, such as 'scene_parse150', or set config.data.name to 'folder'.")
    if self._image is None:
      raise UserError(f"The data set '{name}' has no image feature, only {', '.join(self.features)}: "
                      'choose a data set of images.')
    self._label = None if masks or label == NO_LABEL else _choose(
      self.features, 'label', ('label',), lambda f: is_label(f) or (bool(label) and is_label_list(f)), label)
    if self._label and is_label_list(self.features[self._label]):
      self._label = None
    self.num_classes = self.features[self._label].num_classes or 0 if self._label else 0
    self.class_names = tuple(self.features[self._label].int2str(i) for i in range(self.num_classes))
    self.description = f"image '{self._image}', " + (f"label '{self._label}'" if self._label else 'no label')
    self._ends = np.cumsum([shard.take for shard in self._shards])
    self.num_images = int(self._ends[-1])
    array_record = builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD
    self._records = _array_records(self._shards) if array_record else tfrecord.TFRecords(
        [(str(shard.filename), shard.skip, shard.take) for shard in self._shards], cache).read

  def read(self, ids: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Reads images; see `sources.Source`."""
    examples = parallel.map_blocks(self._parse, self._records(ids))
    return [image for image, _ in examples], np.array([label for _, label in examples], np.int32)

  def labels(self) -> np.ndarray:
    """The labels of all images, which means reading all records; see `sources.Source`."""
    blocks = [self.read(np.arange(start, min(start + _BLOCK, self.num_images)))[1]
              for start in range(0, self.num_images, _BLOCK)]
    return np.concatenate(blocks)

  def records(self, ids: np.ndarray) -> Sequence[bytes]:
    """The stored examples, serialised tf.train.Example; b'' for unreadable ones."""
    return self._records(ids)

  def name(self, id: int) -> str:
    """File and index of the example within it, in the format of TFDS's tfds_id."""
    number = int(np.searchsorted(self._ends, id, side='right'))
    shard = self._shards[number]
    example = id - int(self._ends[number]) + shard.take + shard.skip
    return f'{str(shard.filename).rpartition("/")[2]}__{example}'

  def inventory(self) -> Iterator[list]:
    """The data set and version, and [shard and first image, count, 'images']; see `inventory.entries`."""
    yield [f'{self._full_name}, image {self._image}' if self._asked_image else self._full_name]
    for shard in self._shards:
      yield [f'{str(shard.filename).rpartition("/")[2]} from {shard.skip}', int(shard.take), 'images']

  def _parse(self, record):
    try:
      feature = _Example.FromString(record).features.feature
    except DecodeError:
      return b'', -1
    images = feature[self._image].bytes_list.value
    labels = feature[self._label].int64_list.value if self._label else ()
    return images[0] if images else b'', labels[0] if labels else -1


def _flatten(features, prefix=''):
  """Features by their key in an example; nested dicts become 'outer/inner'."""
  found = {}
  for key, feature in sorted(features.items()):  # TFDS does not keep the order.
    if isinstance(feature, tfds.features.FeaturesDict):
      found |= _flatten(feature, f'{prefix}{key}/')
    elif isinstance(getattr(feature, 'feature', None), tfds.features.FeaturesDict):
      inner = _flatten(feature.feature, f'{prefix}{key}/')
      found |= {name: tfds.features.Sequence(part) for name, part in inner.items()}
    else:
      found[prefix + key] = feature
  return found


def label_list(source: TfdsSource, asked: str) -> str | None:
  """The key of the labels of an image that may have several; None if there is none.

  Raises:
    UserError: if the choice is not certain.
  """
  if asked and not is_label_list(source.features.get(asked)):
    return None
  return _choose(source.features, 'label', ('objects/label',), is_label_list, asked)


def _choose(features, kind, usual, fits, asked, prefers=lambda feature: False):
  """The key of the image or label of an example; None if there is none.

  Args:
    features: from `_flatten`.
    kind: 'image' or 'label', the field of config.data that chooses.
    usual: the usual keys, of which the first that is there is taken.
    fits: whether a feature is of this kind; prefers: whether one is the likelier of several.
    asked: the key that the user chose, '' for none.

  Raises:
    UserError: if the key is not there, or the choice is not certain.
  """
  keys = [key for key, feature in features.items() if fits(feature)]
  if asked:
    if asked not in keys:
      raise UserError(f"config.data.{kind} is '{asked}', which is no {kind} of the data set. It has "
                      f'{_in_words(features)}.')
    return asked
  likely = [key for key in keys if prefers(features[key])]
  for certain in [name for name in usual if name in keys][:1], keys, likely:
    if len(certain) == 1:
      return certain[0]
  if keys:
    none = ", or to 'none'" if kind == 'label' else ''
    raise UserError(f'The data set has {len(keys)} features that may be the {kind} ({", ".join(keys)}): set '
                    f'config.data.{kind} to one of them{none}. It has {_in_words(features)}.')
  return None


def _in_words(features):
  """Every feature with its kind and shape, as in "image Image (None, None, 3)"."""
  return '; '.join(f'{key} {type(feature).__name__} {_shape(feature)}' for key, feature in features.items())


def _shape(feature):
  if isinstance(feature, tfds.features.ClassLabel):
    return f'of {feature.num_classes} classes'
  if isinstance(feature, tfds.features.Sequence):
    return f'of {type(feature.feature).__name__}'
  return str(feature.shape)


def _is_rgb(feature):
  return feature.shape[-1] == 3


def is_label(feature: Any) -> bool:
  """Whether a feature is the class of an image."""
  return isinstance(feature, tfds.features.ClassLabel)


def is_label_list(feature: Any) -> bool:
  """Whether a feature is any number of classes."""
  return isinstance(feature, tfds.features.Sequence) and is_label(feature.feature)


def _is_image(feature):
  # A label map is an Image too; a float image is stored as raw bits, not as a picture.
  return (isinstance(feature, tfds.features.Image) and feature.np_dtype in (np.uint8, np.uint16)
          and not isinstance(feature, tfds.features.LabeledImage))


def _mask_of(features, image):
  """The key of the label map: a single-channel image, else any image other than the main one."""
  maps: dict[str, Any] = {
    key: feature for key, feature in features.items()
    if isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8 and key != image}
  return next((key for key, feature in maps.items() if feature.shape[-1] == 1), next(iter(maps), None))


def _array_records(shards):
  parallel.map_blocks(files.stamp, [str(shard.filename) for shard in shards], block=1)
  records = ArrayRecordDataSource(shards)

  def read_one(id):
    try:
      return records[id]
    except RuntimeError:
      return b''

  def read(ids):
    ids = ids.tolist()
    try:
      return records.__getitems__(ids) if ids else []
    except RuntimeError:  # One damaged file makes the whole call fail.
      return [read_one(id) for id in ids]
  return read
