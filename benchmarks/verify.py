"""What it costs at a restore to compare a checkpoint with the hashes of what was saved.

  python -m benchmarks.verify --gigabytes=10

Reading the same files is the baseline: a restore must read them in any case. Both begin without the files in
the page cache, and take turns.
"""
import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.hardware import hardware
from conic_jax.run import manifest

TABLE = Path(__file__).parent / 'results' / 'verify.md'
_BLOCK = 2**24


def write_files(folder: Path, total: int, count: int) -> None:
  """Writes files of random bytes, about as many as Orbax writes for an array of this size."""
  rng = np.random.default_rng(0)
  folder.mkdir(parents=True)
  for number in range(count):
    with (folder / f'{number:02d}').open('wb') as file:
      for _ in range(total // count // _BLOCK):
        file.write(rng.bytes(_BLOCK))
      os.fsync(file.fileno())


def forget(folder: Path) -> None:
  """Drops the files from the page cache."""
  for path in folder.iterdir():
    with path.open('rb') as file:
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(folder: Path) -> None:
  """Reads every file, one after the other."""
  for path in folder.iterdir():
    with path.open('rb', buffering=0) as file:
      while file.read(_BLOCK):
        pass


def timed(action: Callable[[], object], folder: Path) -> float:
  """Seconds of an action that begins without the files in the page cache."""
  forget(folder)
  begun = time.perf_counter()
  action()
  return time.perf_counter() - begun


def main() -> None:
  """Measures, and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--gigabytes', type=float, default=10.0, help='size of the checkpoint')
  parser.add_argument('--times', type=int, default=3, help='turns')
  parser.add_argument('--files', type=int, default=20, help='files of the checkpoint')
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as root:
    folder, path = Path(root, 'checkpoint'), Path(root, 'checksums', 'checkpoint.json')
    write_files(folder, int(arguments.gigabytes * 1e9), arguments.files)
    manifest.write(folder, path)
    reads, checks = [], []
    for _ in range(arguments.times):
      reads.append(timed(lambda: read(folder), folder))
      checks.append(timed(lambda: manifest.damage(folder, path), folder))
    reading, checking = statistics.median(reads), statistics.median(checks)
  rows = (('read the files', reading), ('compare them with their hashes', checking))
  TABLE.write_text('\n'.join([
    '# Comparing a checkpoint with its hashes', '', '`python -m benchmarks.verify`', '', hardware(), '',
    f'{arguments.gigabytes:g} GB in {arguments.files} files, none in the page cache; medians of '
    f'{arguments.times} turns. `--config.checkpoint.verify=false` leaves the check out.', '',
    '| | seconds | GB/s | against reading |', '| --- | ---: | ---: | ---: |',
    *(f'| {name} | {seconds:.1f} | {arguments.gigabytes / seconds:.2f} | {seconds / reading:.2f} |'
      for name, seconds in rows)]) + '\n')
  print(TABLE.read_text())


if __name__ == '__main__':
  main()
