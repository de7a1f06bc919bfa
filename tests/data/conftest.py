"""Small sources and TFDS copies, made here."""
import numpy as np
import pytest
import tensorflow_datasets as tfds
from samples import FakeSource, encode, smooth

NUM_TRAIN, NUM_TEST = 23, 6


@pytest.fixture(scope='session')
def colour_source():
  """Forty JPEG images of different sizes with labels."""
  sizes = np.random.default_rng(0).integers(30, 70, (40, 2))
  return FakeSource([encode(smooth(*size, seed), 'JPEG', quality=95)
                     for seed, size in enumerate(sizes)], [i % 4 for i in range(40)])


with tfds.core.registered.skip_registration():

  class TinyPlain(tfds.core.GeneratorBasedBuilder):
    """Images, labels and a text."""
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
          'image': tfds.features.Image(shape=(None, None, 3)), 'caption': tfds.features.Text(),
          'label': tfds.features.ClassLabel(names=['ant', 'bee', 'cat'])}))

    def _split_generators(self, _):
      return {'train': self._generate_examples(0, NUM_TRAIN),
              'test': self._generate_examples(NUM_TRAIN, NUM_TRAIN + NUM_TEST)}

    def _generate_examples(self, start, end):
      for i in range(start, end):
        yield i, {'image': np.full((4, 4, 3), i, np.uint8), 'caption': str(i), 'label': i % 3}

  class TinyNested(TinyPlain):
    """An image inside a dict, without labels."""
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
          'number': np.int64, 'scene': {'picture': tfds.features.Image(shape=(None, None, 3))}}))

    def _generate_examples(self, start, end):
      for i in range(start, end):
        yield i, {'number': i, 'scene': {'picture': np.full((4, 4, 3), i, np.uint8)}}

  class TinyText(TinyPlain):
    """No image at all."""
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self,
          features=tfds.features.FeaturesDict({'number': np.int64}))

    def _generate_examples(self, start, end):
      for i in range(start, end):
        yield i, {'number': i}


@pytest.fixture(scope='session')
def tfds_dir(tmp_path_factory):
  """A data_dir with tiny_plain (TFRecord), tiny_nested (ArrayRecord) and tiny_text."""
  root = str(tmp_path_factory.mktemp('tfds'))
  for builder, form in [(TinyPlain, 'tfrecord'), (TinyNested, 'array_record'),
                        (TinyText, 'tfrecord')]:
    builder(data_dir=root, file_format=form).download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=3))
  return root
