"""What one and two cores prepare, and what would bound sixteen, for `benchmarks.input`.

  python -m benchmarks.input_cores FOLDER --cores 0 1

A process is bound to some cores, prepares batches of the images in a folder with a thread for each, and
prints its figures as JSON. It starts to measure when it reads a line.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from conic_jax.command_line import load
from conic_jax.views import Views

CONFIG: Any = load('configs/conic.py')
VIEWS = Views(**CONFIG.views)
BATCH, BATCHES, ROUNDS, MANY = 64, 30, 3, 16
COPIED = 128 << 20  # Bytes, more than caches hold.


def prepared(folder: str, cores: list[list[int]]) -> list[dict]:
  """Figures of processes that prepare images at the same time, each on cores of its own."""
  processes = [subprocess.Popen(
    [sys.executable, '-m', 'benchmarks.input_cores', folder, '--cores', *map(str, own)], text=True,
    cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL) for own in cores]
  for process in processes:
    assert process.stdout is not None
    process.stdout.readline()
  for process in processes:
    assert process.stdin is not None
    process.stdin.write('\n')
    process.stdin.flush()
  return [json.loads(process.communicate()[0]) for process in processes]


def measure(folder: str) -> dict[str, dict[str, float]]:
  """Medians for one core, and where there are two, for both in one process and in a process each."""
  first, *others = sorted(os.sched_getaffinity(0))
  settings = {'one core': [[first]]}
  if others:
    settings |= {'two cores, one process': [[first, others[0]]],
                 'two cores, a process each': [[first], [others[0]]]}
  rounds = {name: [] for name in settings}
  for _ in range(ROUNDS):
    for name, cores in settings.items():
      found = prepared(folder, cores)
      figures = {field: statistics.mean(one[field] for one in found) for field in found[0]}
      rounds[name].append(figures | {'clock': sum(one['clock'] for one in found)})
  return {name: {field: statistics.median(figures[field] for figures in found) for field in found[0]}
          for name, found in rounds.items()}


def report(found: dict[str, dict[str, float]], image_bytes: float) -> list[str]:
  """The table, and what bounds sixteen cores."""
  one = found['one core']
  rows = [f'| {name} | {figures["rate"]:,.0f} | {figures["rate"] / one["rate"]:.2f} | '
          f'{figures["clock"]:,.0f} |' for name, figures in found.items()]
  many, alone = MANY * one['rate'], min(1 / one['python'], 1 / one['consumer'])
  pixels = VIEWS.count * VIEWS.size ** 2 * 3
  moved = many * (2 * image_bytes + 4 * pixels)
  bound = ('which is more: the cores are the bound' if alone > many else
           f'which is less: beyond {alone / one["rate"]:.0f} cores, a second process is needed')
  return [
    '## One core and two', '',
    f'Medians of {ROUNDS} rounds of {BATCH * BATCHES:,} images. Other programs shared the machine, so the '
    'processor\'s time says how the work grows with the cores, and the clock only what was left.', '',
    '| cores | images a second of the processor | to one core | images a second of the clock |',
    '| --- | ---: | ---: | ---: |', *rows, '',
    f'By counting, {MANY} cores prepare {MANY} × {one["rate"]:,.0f} = {many:,.0f} images/s. Reading, '
    f"headers and crops hold Python's lock for at most {1e3 * one['python']:.2f} ms an image; handing out "
    f'batches takes {1e3 * one["consumer"]:.2f} ms. They allow one process {alone:,.0f} images/s, {bound}. '
    f'At {many:,.0f} images/s, files come at {many * image_bytes / 1e6:,.0f} MB/s. Files are copied once; '
    f'views are written, copied into a batch and read: {moved / 1e9:.1f} GB/s, if no cache helps. '
    f'One core here copies {one["copied"] / 1e9:.1f} GB/s.', '']


def work(folder: str, cores: list[int]) -> dict[str, float]:
  """Figures of this process: see `report`."""
  from conic_jax.data import crops, decode, pipeline  # After the cores are chosen.
  from conic_jax.data import folder as folders
  from conic_jax.data.sampler import Sampler
  source: Any = folders.Folder(folder, '')
  batch = min(BATCH, source.num_images)
  stream = pipeline.train_batches(source, (VIEWS,), Sampler(source.num_images, batch, seed=0), start_step=0,
                                  rows=np.arange(batch), threads=len(cores))
  next(stream)
  print('ready', flush=True)
  sys.stdin.readline()
  clock, processor, consumer = time.perf_counter(), time.process_time(), time.thread_time()
  for _ in range(BATCHES):
    next(stream)
  clock, processor, consumer = (time.perf_counter() - clock, time.process_time() - processor,
                                time.thread_time() - consumer)
  stream.close()
  start = time.process_time()
  for step in range(BATCHES):
    ids = np.arange(batch)
    data, _ = source.read(ids)
    shapes = np.array([decode.prepare(image)[1:] for image in data])
    boxes, _ = crops.random_views((VIEWS,), shapes, ids, 0, step)
    crops.fractions(boxes, shapes)
  python = time.process_time() - start
  images = batch * BATCHES
  return {'rate': images / processor, 'clock': images / clock, 'consumer': consumer / images,
          'python': python / images, 'copied': copied()}


def copied() -> float:
  """Bytes a second that a core reads and writes when it copies."""
  source, target = np.ones(COPIED, np.uint8), np.zeros(COPIED, np.uint8)
  start = time.process_time()
  for _ in range(4):
    np.copyto(target, source)
  return 4 * 2 * COPIED / (time.process_time() - start)


def main() -> None:
  """Measures in this process."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('folder')
  parser.add_argument('--cores', type=int, nargs='+', required=True)
  args = parser.parse_args()
  os.sched_setaffinity(0, args.cores)
  print(json.dumps(work(args.folder, args.cores)))


if __name__ == '__main__':
  main()
