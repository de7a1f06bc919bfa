"""Thousands of steps of each method: memory and open files must stay as they are.

  python -m benchmarks.endurance --steps=3000

Each method trains on tiny images in a process of its own, with a report every 20 steps and a checkpoint every
300. What the process holds is read from /proc at each report; the table compares the middle third of the run
with its last third, by the largest value in each. Writes benchmarks/results/endurance.md.
"""
import argparse
import concurrent.futures
import dataclasses
import tempfile
import time
from pathlib import Path

from benchmarks import soak_run
from benchmarks.hardware import hardware
from benchmarks.soak_run import METHODS, Command, ended, reports

TABLE = Path(__file__).parent / 'results' / 'endurance.md'
STEPS_PER_EPOCH = soak_run.STEPS // soak_run.COMMON['epochs']


@dataclasses.dataclass(frozen=True)
class Sample:
  """What a process holds after a step: resident memory in MB, and open files."""
  step: int
  memory: float
  files: int


def sample(pid: int, step: int) -> Sample:
  """Reads what a process holds."""
  process = Path('/proc') / str(pid)
  status = dict(line.split(':', 1) for line in (process / 'status').read_text().splitlines())
  return Sample(step, int(status['VmRSS'].split()[0]) / 1024, len(list((process / 'fd').iterdir())))


def watched(root: Path, method: str, steps: int) -> list[Sample]:
  """Trains a method, and samples it at each report.

  Raises:
    SystemExit: if it does not end well.
  """
  changes = {'epochs': steps // STEPS_PER_EPOCH, 'log_every': 20, 'checkpoint.every_epochs': 50.0}
  command = Command(root, method, root / 'runs' / method, changes=tuple(changes.items()))
  process, = command.start()
  samples: list[Sample] = []
  while process.poll() is None:
    step = max(reports(command.run), default=0)
    if step > (samples[-1].step if samples else 0):
      try:
        samples.append(sample(process.pid, step))
      except (FileNotFoundError, KeyError):  # It has ended meanwhile.
        break
    time.sleep(0.05)
  outcome = ended(process)
  if outcome.code or max(reports(command.run)) < steps:
    raise SystemExit(f'{method} ended with {outcome.code}: {outcome.told}')
  return samples


def row(method: str, samples: list[Sample]) -> str:
  """A line of the table."""
  last = samples[-1].step
  middle = [held for held in samples if last / 3 <= held.step < 2 * last / 3]
  end = [held for held in samples if held.step >= 2 * last / 3]
  memory = [max(held.memory for held in part) for part in (middle, end)]
  files = [max(held.files for held in part) for part in (middle, end)]
  return (f'| {method} | {len(samples)} | {memory[0]:.0f} | {memory[1]:.0f} | {memory[1] - memory[0]:+.1f} | '
          f'{files[0]} | {files[1]} |')


def main() -> None:
  """Trains every method, and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--steps', type=int, default=3000)
  parser.add_argument('--workers', type=int, default=1, help='runs at a time')
  parser.add_argument('--methods', nargs='*', default=list(METHODS), choices=list(METHODS))
  arguments = parser.parse_args()
  steps = arguments.steps // STEPS_PER_EPOCH * STEPS_PER_EPOCH
  with tempfile.TemporaryDirectory() as folder, \
       concurrent.futures.ThreadPoolExecutor(arguments.workers) as pool:
    soak_run.draw_images(Path(folder))
    done = pool.map(lambda method: row(method, watched(Path(folder), method, steps)), arguments.methods)
    rows = []
    for line in done:
      print(line, flush=True)
      rows.append(line)
  lines = [f'# What a process holds in {steps:,} steps', '',
           f'`python -m benchmarks.endurance --steps={arguments.steps}`', '',
           hardware(), '',
           'The largest resident memory in MB, and the most open files, in the middle third of the run and',
           'in its last third.', '',
           '| method | samples | memory, middle | memory, end | change | files, middle | files, end |',
           '| --- |' + ' ---: |' * 6, *rows]
  TABLE.write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
