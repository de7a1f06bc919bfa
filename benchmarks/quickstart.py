"""Seconds of the processor and memory that `make quickstart` takes, with nothing compiled before and again.

  python -m benchmarks.quickstart

Runs the Makefile's command twice, each time into a new folder: first with an empty folder of compiled
programs, then with what the first run has left there. JAX tells what it compiles. When a line of the command
or of JAX arrives, the time since the line before goes to the part that the line ends; of a line of JAX, what
compiling took. Times are of the processor, all threads and ended children together, so that other programs of
the machine matter less. Writes benchmarks/results/quickstart.md.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.hardware import hardware
from benchmarks.start import ROOT, environment, processor_seconds

RESULTS = Path(__file__).parent / 'results' / 'quickstart.md'
IMPORTS, COMPILING, STEPS, PICTURES = 'imports, opening the data', 'compiling', 'training steps', 'pictures'
# What a line of the command ends, by what it holds; the first that fits counts.
ENDS = {'conic: ': IMPORTS, 'step 0/': 'figures of the random network', 'knn_top1': 'kNN while training',
        'step ': STEPS, 'random network ': 'final evaluation', 'Pictures: ': PICTURES}
PARTS = (*ENDS.values(), COMPILING)
TOOK = re.compile(r'Finished (tracing|jaxpr|XLA).* in ([\d.e-]+) sec')
WHY = (
  'Short of 110 s: the {steps:.0f} s of the 300 training steps alone are more; fewer or smaller ones would '
  'be another training. Of the rest, the final evaluation takes most: it compares with raw pixels and the '
  'random network.')


class Run(NamedTuple):
  """What a run of the command took.

  Attributes:
    seconds: of the processor, by part.
    programs: how many were compiled, or read from the folder of compiled programs.
    memory: most bytes that the process held at once.
  """
  seconds: dict[str, float]
  programs: int
  memory: int


def command() -> list[str]:
  """The Python command of `make quickstart`."""
  lines = iter((ROOT / 'Makefile').read_text().splitlines())
  next(line for line in lines if line.startswith('quickstart:'))
  return [sys.executable, *next(lines).split()[1:]]


def measure(cache: Path) -> Run:
  """Runs the command with this folder of compiled programs.

  Raises:
    SystemExit: if the run does not end well.
  """
  settings = environment(cache) | {'JAX_LOG_COMPILES': '1', 'TF_CPP_MIN_LOG_LEVEL': '2'}
  with tempfile.TemporaryDirectory(dir=cache) as run:
    process = subprocess.Popen([*command(), f'--config.run={run}/run'], cwd=ROOT, env=settings, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    lines = [(processor_seconds(process.pid), line) for line in process.stdout]
    _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise SystemExit(f'The run ended with {process.returncode}: {"".join(line for _, line in lines[-20:])}')
  seconds = divided(lines)
  seconds[PICTURES] += usage.ru_utime + usage.ru_stime - lines[-1][0]
  return Run(seconds, sum('Finished XLA' in line for _, line in lines), 1024 * usage.ru_maxrss)


def divided(lines: Iterable[tuple[float, str]]) -> dict[str, float]:
  """Seconds of each part, from the seconds until each line."""
  seconds, before, waiting = dict.fromkeys(PARTS, 0.0), 0.0, 0.0
  for now, line in lines:
    taken, before = now - before, now
    compiled = compiling(line, taken)
    seconds[COMPILING] += compiled
    waiting += taken - compiled
    part = next((part for held, part in ENDS.items() if held in line), None)
    if part and not line.startswith('WARNING'):
      seconds[part] += waiting
      waiting = 0.0
  seconds[PICTURES] += waiting
  return seconds


def compiling(line: str, taken: float) -> float:
  """Seconds of a line of JAX that went into compiling, of those since the line before.

  Tracing may follow other work, but has one thread: it takes no more of the processor than of the clock.
  """
  if 'Persistent compilation cache' in line:
    return taken
  found = TOOK.search(line)
  if found is None:
    return 0.0
  return taken if found[1] == 'XLA' else min(taken, float(found[2]))


def main() -> None:
  """Measures, prints and writes the table."""
  argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
  with tempfile.TemporaryDirectory() as folder:
    runs = [measure(Path(folder)) for _ in range(2)]
  row = lambda name, values: f'| {name} | {" | ".join(values)} |'
  lines = ['# The quick start', '', '`python -m benchmarks.quickstart`', '', hardware(),
           '`' + ' '.join(['python', *command()[1:]]) + '`, seconds of the processor.', '',
           '| part | first run | second run |', '| --- | ---: | ---: |',
           *(row(part, [f'{run.seconds[part]:.1f}' for run in runs]) for part in PARTS),
           row('**in all**', [f'**{sum(run.seconds.values()):.1f}**' for run in runs]),
           row('programs compiled or read', [str(run.programs) for run in runs]),
           row('largest memory (MB)', [f'{run.memory / 1e6:,.0f}' for run in runs]), '',
           WHY.format(steps=runs[0].seconds[STEPS])]
  print('\n'.join(lines))
  RESULTS.write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
