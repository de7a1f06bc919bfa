"""Writes the images of a folder as people keep them otherwise: in tars, in Parquet files, in a list."""
import csv
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def images_of(folder):
  """(path, class) of the images of class folders, sorted."""
  return [(path, path.parent.name) for path in sorted(Path(folder).glob('*/*'))]


def write_tar(path, members):
  """Writes (name, bytes) into a tar."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, 'w') as tar:
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return path


def write_tars(folder, root, split, count=3):
  """Writes ROOT/SPLIT-00.tar and so on, with the number of the class of each image."""
  images = images_of(folder)
  names = sorted({label for _, label in images})
  size = -(-len(images) // count)
  for shard in range(count):
    members = []
    for number, (path, label) in enumerate(images[shard * size:(shard + 1) * size], shard * size):
      members += [(f'{number:04d}{path.suffix}', path.read_bytes()),
                  (f'{number:04d}.cls', str(names.index(label)).encode())]
    write_tar(root / f'{split}-{shard:02d}.tar', members)
  (root / 'classnames.txt').write_text('\n'.join(names))


def write_parquet(folder, root, split, count=2, group=5):
  """Writes ROOT/data/SPLIT-00000-of-0000N.parquet as Hugging Face's data sets do."""
  images = images_of(folder)
  names = sorted({label for _, label in images})
  about = {'image': {'_type': 'Image'}, 'label': {'names': names, '_type': 'ClassLabel'}}
  image = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
  schema = pa.schema([('image', image), ('label', pa.int64())],
                     {b'huggingface': json.dumps({'info': {'features': about}}).encode()})
  size = -(-len(images) // count)
  (root / 'data').mkdir(parents=True, exist_ok=True)
  for shard in range(count):
    some = images[shard * size:(shard + 1) * size]
    table = pa.table({'image': [{'bytes': path.read_bytes(), 'path': path.name} for path, _ in some],
                      'label': [names.index(label) for _, label in some]}, schema)
    pq.write_table(table, root / 'data' / f'{split}-{shard:05d}-of-{count:05d}.parquet', row_group_size=group)


def write_list(folder, root, split):
  """Writes ROOT/SPLIT.csv, with absolute paths."""
  root.mkdir(parents=True, exist_ok=True)
  with (root / f'{split}.csv').open('w', newline='') as file:
    csv.writer(file).writerows([('path', 'label'), *images_of(folder)])


WRITERS = {'wds': write_tars, 'parquet': write_parquet, 'list': write_list}
