"""Seconds until a command takes its first step, with nothing compiled before and for the second time.

  python -m benchmarks.start
  python -m benchmarks.start --config configs/moco_v2.py:photos --repeats 5

Each start is a process of its own, which is stopped after its first step. The first start of a pair has an
empty folder of compiled programs, the second one what the first has left there; its seconds are also given by
part. Also imports the package, what Python programs use of it, and TensorFlow alone. Where other programs run
beside it, only the seconds of the processor count. Writes benchmarks/results/start.md.
"""
import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.hardware import hardware

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / 'results' / 'start.md'
# How the lines begin that end a part of a start; the last is that of the first step.
ENDS = {'conic: ': 'imports, opening the data', 'step 0/': 'figures of the random network',
        'step 1/': 'the first step'}
IMPORTS = ('conic_jax', 'conic_jax.api', 'conic_jax.data.lazy_tensorflow')
WHY = (
  'A second start takes over 8 s for what it imports, a third of it TensorFlow, whose tf.data is the input '
  'pipeline, and for the figures of the random network, which the run is compared with: they encode images '
  'before the first step. Where other programs ran beside it, only the seconds of the processor count.')


def environment(cache: Path) -> dict[str, str]:
  """The environment of a user whose cache folder this is."""
  kept = {name: value for name, value in os.environ.items() if not name.startswith('JAX_')}
  return kept | {'JAX_PLATFORMS': 'cpu', 'XDG_CACHE_HOME': str(cache), 'PYTHONUNBUFFERED': '1'}


def until_first_step(config: str, folder: Path) -> np.ndarray:
  """Seconds, of the clock and of the processor, from a command's start to the end of each part: [3, 2]."""
  with tempfile.TemporaryDirectory(dir=folder) as run:
    command = [sys.executable, '-m', 'conic_jax.main', f'--config={config}', f'--config.run={run}/run']
    start, seconds, ends = time.perf_counter(), [], list(ENDS)
    process = subprocess.Popen(command, cwd=ROOT, env=environment(folder), text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    for line in process.stdout:
      if line.startswith(ends[len(seconds)]):
        seconds.append((time.perf_counter() - start, processor_seconds(process.pid)))
      if len(seconds) == len(ends):
        break
    process.kill()
    process.communicate()
  if len(seconds) < len(ends):
    raise SystemExit(f'{" ".join(command)} ended before its first step.')
  return np.array(seconds)


def processor_seconds(pid: int) -> float:
  """Seconds that a running process and its ended children have taken of the processor."""
  fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  return sum(map(int, fields[11:15])) / os.sysconf('SC_CLK_TCK')


def import_seconds(statement: str, folder: Path) -> np.ndarray:
  """Seconds, of the clock and of the processor, of a process that imports, without Python's own start."""
  def run(code: str) -> np.ndarray:
    start, before = time.perf_counter(), ended_seconds()
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=environment(folder), check=True,
                   stderr=subprocess.DEVNULL)
    return np.array([time.perf_counter() - start, ended_seconds() - before])
  return run(statement) - run('pass')


def ended_seconds() -> float:
  """Seconds that this process's ended children have taken of the processor."""
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


def main() -> None:
  """Measures, prints and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', default='configs/conic.py:photos')
  parser.add_argument('--repeats', type=int, default=3)
  args = parser.parse_args()
  starts, imports = [], []
  for _ in range(args.repeats):
    with tempfile.TemporaryDirectory() as name:
      folder = Path(name)
      starts.append([until_first_step(args.config, folder) for _ in range(2)])
      imports.append([import_seconds(f'import {package}', folder) for package in IMPORTS])
  first, second = np.median(starts, axis=0)
  rows = [('first start', first[-1]), ('second start', second[-1]),
          *((f'of it {part}', each) for part, each in zip(ENDS.values(), np.diff(second, axis=0, prepend=0))),
          *((f'`import {package}`', each) for package, each in zip(IMPORTS, np.median(imports, axis=0)))]
  lines = ['# From a command to its first step', '',
           f'`python -m benchmarks.start --config {args.config} --repeats {args.repeats}`', '', hardware(),
           f'Medians of {args.repeats}.', '', '| what | seconds | of the processor |',
           '| --- | ---: | ---: |',
           *(f'| {what} | {clock:.2f} | {processor:.2f} |' for what, (clock, processor) in rows), '', WHY]
  print('\n'.join(lines))
  RESULTS.write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
