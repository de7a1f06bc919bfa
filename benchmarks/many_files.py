"""A folder of very many images: how long a run takes to start, what memory it needs, and what it names.

  python -m benchmarks.many_files --counts 1000 1000000

Tiny images lie in a hundred class folders, as hard links to one; every hundredth cannot be decoded. Each
folder is trained on for a few steps in a process of its own, twice: the second finds its programs compiled,
and is measured. Writes benchmarks/results/many_files.md.
"""
import argparse
import io
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.hardware import hardware
from benchmarks.soak_run import Command

TABLE = Path(__file__).parent / 'results' / 'many_files.md'
CLASSES, STEPS = 100, 12


def write_images(root: Path, count: int) -> None:
  """Writes the images: a file in each class of those that can be decoded, and hard links to it."""
  buffer, rng = io.BytesIO(), np.random.default_rng(0)
  Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(buffer, 'PNG')
  for index in range(CLASSES):
    (root / f'class-{index:02d}').mkdir(parents=True)
  for index in range(count):
    folder = f'{root}/class-{index * CLASSES // count:02d}'
    original = f'{folder}/{index % 100 > 0}'
    if not os.path.exists(original):
      Path(original).write_bytes(buffer.getvalue() if index % 100 else b'no image')
    os.link(original, f'{folder}/{index:06d}.png')


def measure(root: Path, count: int) -> str:
  """Trains, and gives a line of the table.

  Raises:
    SystemExit: if the run does not end well.
  """
  shutil.rmtree(root / 'run', ignore_errors=True)
  run, output = root / 'run', root / 'output'
  command = Command(root, 'conic', run, devices=1, changes=(('epochs', 1), ('max_steps', STEPS)))
  begun = time.monotonic()
  process, = command.start(output=output)
  first = None
  while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
    if first is None and (run / 'metrics.jsonl').exists() and (run / 'metrics.jsonl').stat().st_size:
      first = time.monotonic() - begun
    time.sleep(0.01)
  process.returncode = os.waitstatus_to_exitcode(ended[1])
  said = output.read_text()
  if process.returncode or first is None:
    raise SystemExit(f'With {count} images the run ended with {process.returncode}: {process.stderr.read()}')
  named = re.findall(r'class-\d\d/\d{6}\.png', said)
  if any(int(Path(name).stem) % 100 for name in named):
    raise SystemExit(f'An image that can be decoded was named: {named}')
  told = re.search(r'(\d+) images could not be decoded', said)
  processor = ended[2].ru_utime + ended[2].ru_stime
  return (f'| {count:,} | {first:.1f} | {processor:.1f} | {ended[2].ru_maxrss / 1024:.0f} | '
          f'{told[1] if told else 0} | {len(set(named))} |')


def main() -> None:
  """Measures, and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--counts', type=int, nargs='*', default=[1000, 1_000_000])
  arguments = parser.parse_args()
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    for count in arguments.counts:
      root = Path(folder) / str(count)
      write_images(root / 'images', count)
      measure(root, count)
      rows.append(measure(root, count))
      print(rows[-1], flush=True)
      shutil.rmtree(root)
  counts = ' '.join(map(str, arguments.counts))
  lines = ['# Folders of very many images', '', f'`python -m benchmarks.many_files --counts {counts}`', '',
           hardware(), '',
           '| images | start to the first report (s) | whole run (s of the processor) | largest memory (MB) '
           '| undecodable among those seen | named |', '| ---: | ---: | ---: | ---: | ---: | ---: |', *rows]
  TABLE.write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
