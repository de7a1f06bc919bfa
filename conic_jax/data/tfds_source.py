"""Data sets prepared by TensorFlow Datasets, read by id; nothing is downloaded."""
import difflib
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf.message import DecodeError

from conic_jax.data import files, parallel, tfrecord
from conic_jax.data.without_keras import tf
from conic_jax.errors import UserError

_BLOCK = 1024  # Records in memory while reading labels.


class TfdsSource:
  """The images of a split expression; ids follow the order of the shards.

  Args:
    name: 'cifar10', or 'name/config:version'.
    data_dir: TFDS's data_dir, '' for its default.
    split: 'train', 'train[:10%]', 'train+test' …
    cache: folder of the offset indexes of TFRecord files.
    masks: whether to read the label maps instead of the images.

  Raises:
    UserError: if the data set, the split or an image feature is missing, or files are damaged.
  """

  def __init__(self, name: str, data_dir: str, split: str, cache: str, masks: bool = False):
    builder = _builder(name, data_dir)
    self._shards, self._full_name = _shards(builder, split), builder.info.full_name
    features = _flatten(builder.info.features)
    self._image = _choose(features, 'image', _is_image)
    if masks:
      self._image = _mask_of(features, self._image)
      if self._image is None:
        raise UserError(f"The data set '{name}' has no label map, only {', '.join(features)}: choose one "
                        "that has, such as 'scene_parse150', or set config.data.name to 'folder'.")
    if self._image is None:
      raise UserError(f"The data set '{name}' has no image feature, only {', '.join(features)}: "
                      'choose a data set of images.')
    self._label = _choose(features, 'label', lambda f: isinstance(f, tfds.features.ClassLabel))
    self.num_classes = features[self._label].num_classes or 0 if self._label else 0
    self.class_names = tuple(features[self._label].int2str(i) for i in range(self.num_classes))
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
    yield [self._full_name]
    for shard in self._shards:
      yield [f'{str(shard.filename).rpartition("/")[2]} from {shard.skip}', int(shard.take), 'images']

  def _parse(self, record):
    try:
      feature = tf.train.Example.FromString(record).features.feature
    except DecodeError:
      return b'', -1
    images = feature[self._image].bytes_list.value
    labels = feature[self._label].int64_list.value if self._label else ()
    return images[0] if images else b'', labels[0] if labels else -1


def _builder(name, data_dir):
  try:
    builder = tfds.builder(name, data_dir=data_dir or None)
  except tfds.core.DatasetNotFoundError:
    near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False))
    raise UserError(f"There is no data set '{name}' in TFDS{_did_you_mean(near)}: for a folder of "
                    "images set config.data.name to 'folder' and config.data.dir to the folder, "
                    "for a set that needs no download 'photos'.") from None
  except (ValueError, AssertionError) as error:  # What TFDS raises for a wrong config or version.
    raise UserError(f"TFDS cannot open '{name}': {str(error).strip().splitlines()[0]} Set "
                    'config.data.name to a configuration and version that it knows.') from None
  if not builder.info.splits:
    raise UserError(_how_to_prepare(builder, name))
  return builder


def _did_you_mean(names):
  return f' (did you mean {" or ".join(map(repr, names))}?)' if names else ''


def _how_to_prepare(builder, name):
  root = str(builder.data_path).removesuffix(f'/{builder.info.full_name}')
  command = f'tfds build {name} --data_dir {root}'
  manual = getattr(builder, 'MANUAL_DOWNLOAD_INSTRUCTIONS', None)
  if not manual:
    return (f"The data set '{name}' is not prepared in {root}: run `{command}`, or set "
            'config.data.dir.')
  folder = f'{root}/downloads/manual'
  return (f"The data set '{name}' is not prepared in {root}, and cannot be fetched for you: put "
          f'its files into {folder} ({" ".join(manual.split())}), then run `{command} --manual_dir '
          f'{folder}`, or set config.data.dir.')


def _shards(builder, split):
  try:
    shards = builder.info.splits[split].file_instructions
  except (ValueError, KeyError) as error:
    raise UserError(f"The data set '{builder.info.full_name}' has no split '{split}' "
                    f'({str(error).strip().splitlines()[0]}): it has '
                    f'{", ".join(builder.info.splits)}, and slices of them such as '
                    "'train[:10%]'.") from None
  if not shards:
    raise UserError(f"The split '{split}' of '{builder.info.full_name}' holds no image: choose a "
                    f'larger slice of {", ".join(builder.info.splits)}.')
  return shards


def _flatten(features, prefix=''):
  """Features by their key in an example; nested dicts become 'outer/inner'."""
  found = {}
  for key, feature in sorted(features.items()):  # TFDS does not keep the order.
    if isinstance(feature, tfds.features.FeaturesDict):
      found |= _flatten(feature, f'{prefix}{key}/')
    else:
      found[prefix + key] = feature
  return found


def _choose(features, usual, fits):
  """The usual key if it fits, else the first that fits."""
  keys = [key for key, feature in features.items() if fits(feature)]
  return usual if usual in keys else next(iter(keys), None)


def _is_image(feature):
  # A label map is an Image too; a float image is stored as raw bits, not as a picture.
  return (isinstance(feature, tfds.features.Image) and feature.np_dtype in (np.uint8, np.uint16)
          and not isinstance(feature, tfds.features.LabeledImage))


def _mask_of(features, image):
  """The key of the label map: a single-channel image, else any image other than the main one."""
  maps = {key: feature for key, feature in features.items()
          if isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8 and key != image}
  return _choose(maps, '', lambda feature: feature.shape[-1] == 1) or next(iter(maps), None)


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
