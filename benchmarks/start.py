"""Seconds until a command takes its first step, with nothing compiled before and for the second time.

  python -m benchmarks.start
  python -m benchmarks.start --config configs/moco_v2.py:photos --repeats 5

Each start is a process of its own, which is stopped after its first step. The first start of a pair has an
empty folder of compiled programs, the second one what the first has left there. Also imports the package, and
what Python programs use of it. Writes benchmarks/results/start.md.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.hardware import hardware

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / 'results' / 'start.md'
# The line of the first step.
FIRST = 'step 1/'


def environment(cache: Path) -> dict[str, str]:
  """The environment of a user whose cache folder this is."""
  kept = {name: value for name, value in os.environ.items() if not name.startswith('JAX_')}
  return kept | {'JAX_PLATFORMS': 'cpu', 'XDG_CACHE_HOME': str(cache), 'PYTHONUNBUFFERED': '1'}


def until_first_step(config: str, folder: Path) -> tuple[float, float]:
  """Seconds, of the clock and of the processor, from a command's start to its first step."""
  with tempfile.TemporaryDirectory(dir=folder) as run:
    command = [sys.executable, '-m', 'conic_jax.main', f'--config={config}', f'--config.run={run}/run']
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment(folder), text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    found = next((line for line in process.stdout if line.startswith(FIRST)), None)
    seconds = time.perf_counter() - start, processor_seconds(process.pid)
    process.kill()
    process.communicate()
    if found is None:
      raise SystemExit(f'{" ".join(command)} ended before its first step.')
  return seconds


def processor_seconds(pid: int) -> float:
  """Seconds that a running process has taken of the processor."""
  fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def import_seconds(statement: str, folder: Path) -> float:
  """Seconds of a process that imports, without Python's own start."""
  def run(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=environment(folder), check=True)
    return time.perf_counter() - start
  return run(statement) - run('pass')


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
      imports.append([import_seconds(code, folder) for code in ('import conic_jax', 'import conic_jax.api')])
  (first, second), (package, api) = np.median(starts, axis=0), np.median(imports, axis=0)
  lines = ['# From a command to its first step', '',
           f'`python -m benchmarks.start --config {args.config} --repeats {args.repeats}`', '', hardware(),
           f'Medians of {args.repeats}.', '', '| what | seconds | of the processor |',
           '| --- | ---: | ---: |',
           f'| first start | {first[0]:.1f} | {first[1]:.1f} |',
           f'| second start | {second[0]:.1f} | {second[1]:.1f} |',
           f'| `import conic_jax` | {package:.2f} | |',
           f'| `import conic_jax.api` | {api:.2f} | |']
  print('\n'.join(lines))
  RESULTS.write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
