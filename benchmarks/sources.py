"""Images a second that every kind of source reads, and what an index of a billion images costs.

  python -m benchmarks.sources [--images DIR] [--count 16384]

The same images lie in class folders, in TFDS's TFRecords, in tars, in Parquet files with row groups of 100
and of 4, and are named by a list. They are read, not decoded, in batches of 256, in a random order as in
training and in their own as in evaluations, from the page cache. The index of a billion images is made up: a
sparse file in which the records that are read point to real images; each size has a process of its own.
Without --images, the photographs of scikit-image and scikit-learn in several framings. Writes
benchmarks/results/sources.md.
"""
import argparse
import csv
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.hardware import hardware
from benchmarks.input import make_images

RESULTS = Path(__file__).parent / 'results' / 'sources.md'
BATCH, READ, ROUNDS, TARS = 256, 8192, 3, 8
SIZES, FOUND = (10 ** 6, 10 ** 9), 50_000


def main() -> None:
  """Measures, and writes the tables."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--images', help='class folders of JPEGs')
  parser.add_argument('--count', type=int, default=16384, help='images of each source')
  parser.add_argument('--index', nargs=2, metavar=('ROOT', 'N'), help='measure one made-up index, as JSON')
  args = parser.parse_args()
  if args.index:
    print(json.dumps(measure_index(Path(args.index[0]), int(args.index[1]))))
    return
  with tempfile.TemporaryDirectory() as made:
    root = Path(made)
    images = make_sources(root, args.images, args.count)
    rows = [measure_source(root, name, dir, about) for name, dir, about in sources_in()]
    indexes = [run_index(root, size) for size in SIZES]
  write(rows, indexes, images, args)


# ---- The same images, held in every way ----------------------------------------------------------


def make_sources(root: Path, given: str | None, count: int) -> dict[str, Any]:
  """Writes all sources below a folder; their number of images and mean size in bytes."""
  import pyarrow as pa
  import pyarrow.parquet as pq
  if given is None:
    (root / 'made').mkdir()
    make_images(str(root / 'made'))
  found = sorted(Path(given or root / 'made').rglob('*.[jJ][pP]*[gG]'))
  contents = [found[index % len(found)].read_bytes() for index in range(count)]
  labels = [index * 10 // count for index in range(count)]
  paths = [root / 'folder' / str(label) / f'{index:08d}.jpg' for index, label in enumerate(labels)]
  for path, content in zip(paths, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  with (root / 'list.csv').open('w', newline='') as file:
    csv.writer(file).writerows([('path', 'label'), *zip(paths, labels)])
  write_tars(root / 'wds', contents, labels)
  for group in (100, 4):
    (root / f'parquet{group}').mkdir()
    table = pa.table({'image': [{'bytes': content, 'path': ''} for content in contents], 'label': labels})
    pq.write_table(table, root / f'parquet{group}' / 'train.parquet', row_group_size=group)
  prepare_tfds(root / 'tfds', contents, labels)
  return {'count': count, 'bytes': sum(map(len, contents)) / count}


def write_tars(root: Path, contents: list[bytes], labels: list[int]) -> None:
  """Writes tars with an image and its class in each sample."""
  root.mkdir()
  size = -(-len(contents) // TARS)
  for shard in range(TARS):
    with tarfile.open(root / f'train-{shard:03d}.tar', 'w') as tar:
      for index in range(shard * size, min((shard + 1) * size, len(contents))):
        for ending, content in (('jpg', contents[index]), ('cls', str(labels[index]).encode())):
          member = tarfile.TarInfo(f'{index:08d}.{ending}')
          member.size = len(content)
          tar.addfile(member, io.BytesIO(content))


def prepare_tfds(root: Path, contents: list[bytes], labels: list[int]) -> None:
  """Prepares a data set of TFDS as TFRecords."""
  import tensorflow_datasets as tfds
  tfds.disable_progress_bar()
  with tfds.core.registered.skip_registration():
    class Measured(tfds.core.GeneratorBasedBuilder):
      """The images."""
      VERSION = tfds.core.Version('1.0.0')

      def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(
          {'image': tfds.features.Image(), 'label': tfds.features.ClassLabel(num_classes=10)}))

      def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

      def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (content, label) in enumerate(zip(contents, labels)):
          yield index, {'image': io.BytesIO(content), 'label': label}
  Measured(data_dir=str(root), file_format='tfrecord').download_and_prepare(
    download_config=tfds.download.DownloadConfig(num_shards=TARS))


def sources_in() -> list[tuple[str, str, str]]:
  """`config.data.name`, the place below the root, and what it is."""
  return [('folder', 'folder', 'folder'), ('measured', 'tfds', 'TFDS, TFRecord'), ('wds', 'wds', 'tars'),
          ('list', 'list.csv', 'list'), ('parquet', 'parquet100', 'Parquet, row groups of 100'),
          ('parquet', 'parquet4', 'Parquet, row groups of 4')]


# ---- Reading ------------------------------------------------------------------------------------


def measure_source(root: Path, name: str, dir: str, about: str) -> dict[str, Any]:
  """Seconds to open a source for the first time and again, and images a second in both orders."""
  from conic_jax.data import parquet, sources
  # In the proportion of a data set that is sixteen times larger than what is kept of it.
  parquet._KEPT = sum(path.stat().st_size for path in (root / 'wds').iterdir()) // 16
  data = SimpleNamespace(name=name, dir=str(root / dir), cache=str(root / 'cache'), image='', label='')
  split = 'train' if name == 'measured' else ''
  opened, source = [], None
  for _ in range(2):
    begun = time.perf_counter()
    source = sources.open_source(data, split)
    opened.append(time.perf_counter() - begun)
  assert source is not None
  random = np.random.default_rng(0).permutation(source.num_images)[:READ]
  result = {'about': about, 'first': opened[0], 'again': opened[1],
            'random': rate(source, random), 'in_order': rate(source, np.arange(len(random)))}
  print(result, flush=True)
  return result


def rate(source: Any, ids: np.ndarray) -> float:
  """Images a second, the median over rounds."""
  rates = []
  for _ in range(ROUNDS):
    begun = time.perf_counter()
    for start in range(0, len(ids), BATCH):
      images, _ = source.read(ids[start:start + BATCH])
      assert all(images)
    rates.append(len(ids) / (time.perf_counter() - begun))
  return statistics.median(rates)


# ---- A made-up index ----------------------------------------------------------------------------


def run_index(root: Path, size: int) -> dict[str, Any]:
  """Makes an index of so many records, and measures it in another process."""
  from conic_jax.data import mapped, webdataset
  shutil.rmtree(root / 'sparse', ignore_errors=True)
  webdataset.WebDataset(str(root / 'wds'), '', str(root / 'sparse'))
  folder, = (root / 'sparse').iterdir()
  header = json.loads((folder / 'header.json').read_text())
  real = np.fromfile(folder / 'records', mapped.RECORD)[:header['facts']['counts'][0]]
  with (folder / 'records').open('r+b') as file:
    file.truncate(size * mapped.RECORD.itemsize)
    for number, id in enumerate(ids_of(size).tolist()):
      os.pwrite(file.fileno(), real[number % len(real)].tobytes(), id * mapped.RECORD.itemsize)
  header['sizes']['records'] = size * mapped.RECORD.itemsize
  # The other tars are still there, without images.
  header['facts']['counts'] = [size, *[0] * (TARS - 1)]
  (folder / 'header.json').write_text(json.dumps(header))
  done = subprocess.run([sys.executable, '-m', 'benchmarks.sources', '--index', str(root), str(size)],
                        stdout=subprocess.PIPE, text=True, check=True)
  result = json.loads(done.stdout.splitlines()[-1])
  print(result, flush=True)
  return result


def ids_of(size: int) -> np.ndarray:
  """The images that are read, in the order of reading."""
  return np.random.default_rng(1).integers(0, size, FOUND)


def measure_index(root: Path, size: int) -> dict[str, Any]:
  """Seconds to open the index and memory in MB before, after opening, and after reading."""
  from conic_jax.data import sources
  data = SimpleNamespace(name='wds', dir=str(root / 'wds'), cache=str(root / 'sparse'), image='', label='')
  before, begun = memory(), time.perf_counter()
  source = sources.open_source(data, '')
  opened, after = time.perf_counter() - begun, memory()
  assert source.num_images == size
  ids, begun = ids_of(size), time.perf_counter()
  for start in range(0, len(ids), BATCH):
    assert all(source.read(ids[start:start + BATCH])[0])
  first = len(ids) / (time.perf_counter() - begun)
  end = memory()
  return {'size': size, 'open': opened, 'own_open': after['RssAnon'] - before['RssAnon'],
          'own_read': end['RssAnon'] - before['RssAnon'], 'mapped': end['RssFile'] - before['RssFile'],
          'peak': end['VmHWM'], 'rate': first}


def memory() -> dict[str, float]:
  """This process's memory in MB, by the names of /proc."""
  lines = Path('/proc/self/status').read_text().splitlines()
  return {name: int(value.split()[0]) / 1024 for name, _, value in (line.partition(':') for line in lines)
          if name in ('RssAnon', 'RssFile', 'VmHWM')}


# ---- The page -----------------------------------------------------------------------------------


def write(rows: list[dict[str, Any]], indexes: list[dict[str, Any]], images: dict[str, Any],
          args: argparse.Namespace) -> None:
  """Writes the tables."""
  given = ' --images DIR' if args.images else ''
  lines = [
    '# Sources: images a second, and an index of a billion', '',
    f'`python -m benchmarks.sources{given} --count {args.count}`', '', hardware(), '',
    f'{images["count"]:,} JPEGs of {images["bytes"] / 1000:.1f} kB on average, read in batches of {BATCH} '
    f'and not decoded, from the page cache; the median of {ROUNDS} rounds. Of row groups, a sixteenth of the '
    'images is kept in memory. The first opening makes the index.', '',
    '| source | first opening (s) | next (s) | random order (images/s) | own order (images/s) |',
    '| --- | ---: | ---: | ---: | ---: |',
    *[f'| {row["about"]} | {row["first"]:.2f} | {row["again"]:.3f} | {row["random"]:,.0f} | '
      f'{row["in_order"]:,.0f} |' for row in rows], '',
    f'An index of tars with made-up records, {FOUND:,} of which are read at random. Own memory is what the '
    'process needs beside what it had before it opened the source; what is mapped, the kernel can take back.',
    '',
    '| images | opening (s) | own memory, opened (MB) | own memory, read (MB) | mapped, read (MB) | '
    'largest in all (MB) | images/s |',
    '| ---: | ---: | ---: | ---: | ---: | ---: | ---: |',
    *[f'| {row["size"]:,} | {row["open"]:.3f} | {row["own_open"]:.1f} | {row["own_read"]:.1f} | '
      f'{row["mapped"]:.0f} | {row["peak"]:.0f} | {row["rate"]:,.0f} |' for row in indexes]]
  RESULTS.write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
