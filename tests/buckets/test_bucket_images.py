"""Images in a bucket, in tars and Parquet files, are those of the folder that they were made of."""
import numpy as np
import pytest
from containers import images_of, write_parquet, write_tars
from ml_collections import ConfigDict

from conic_jax.buckets.bucket import files_below, open_path
from conic_jax.data.sources import open_source


@pytest.mark.parametrize(('name', 'write', 'pattern'), [
  ('wds', write_tars, 'train-{00..02}.tar'), ('parquet', write_parquet, 'data/*.parquet')])
def test_images_in_a_bucket_are_read_by_id(bucket, image_folder, tmp_path, name, write, pattern):
  write(image_folder / 'train', tmp_path / 'made', 'train')
  remote = open_path(bucket, 'test')
  for path in files_below(tmp_path / 'made'):
    (remote / path.relative_to(tmp_path / 'made').as_posix()).write_bytes(path.read_bytes())
  data = ConfigDict({'name': name, 'dir': f'{bucket}/{pattern}', 'cache': str(tmp_path / 'index'),
                     'image': '', 'label': ''})
  expected = images_of(image_folder / 'train')
  source = open_source(data, '')
  assert (source.num_images, source.class_names) == (len(expected), ('checks', 'stripes'))
  ids = np.random.default_rng(0).permutation(source.num_images)
  images, labels = source.read(ids)
  assert images == [expected[id][0].read_bytes() for id in ids]
  assert [source.class_names[label] for label in labels] == [expected[id][1] for id in ids]
