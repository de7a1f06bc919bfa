"""Faults of every kind in tiny runs of every method, for as long as you like: does a run survive?

  python -m benchmarks.soak --minutes=120 --workers=2

A trial starts a run in processes of its own, does several random things to it (kills, signals, full disks,
second starts, clocks that jump, damage to files, processes of a cluster that are lost; or another number of
devices at each start), each followed by the same command, and lets it end. It must end in the same losses and
weights as an undisturbed run, to the bit; with other numbers of devices, in losses that differ as rounding
does (`rounding`). A signal is sent once Python has begun the program; reports for which there was no room may
be missing, weights not. A command may stop with one sentence. All else is wrong: a traceback, a hang, other
numbers. Faults are kept in benchmarks/results/soak.jsonl; the table is made of all.
"""
import argparse
import collections
import concurrent.futures
import dataclasses
import json
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks import soak_faults, soak_run
from benchmarks.soak_faults import Chain, Wrong, check
from benchmarks.soak_run import METHODS, STEPS, Command, ended, reports, undisturbed, weights
from conic_jax import __version__

RESULTS = Path(__file__).parent / 'results'
LINES, TABLE = RESULTS / 'soak.jsonl', RESULTS / 'soak.md'
KINDS = {'one process': (1, 2, soak_faults.ALONE), 'two processes': (2, 2, soak_faults.TOGETHER),
         'other numbers of devices': (1, 8, soak_faults.ELASTIC)}
SURVIVED, STOPPED, WRONG = 'survived to the bit', 'stopped with a sentence', 'wrong'
CLOSE = 'survived within rounding'


def trial(root: Path, seed: int, making: threading.Lock) -> list[dict]:
  """Some faults in one run, and what came of each."""
  rng = random.Random(seed)
  method = sorted(METHODS)[seed % len(METHODS)]
  kind = rng.choices(list(KINDS), weights=(6, 2, 1))[0]
  processes, devices, faults = KINDS[kind]
  with making:
    expected = undisturbed(root, method, processes, devices)
    elastic = kind == 'other numbers of devices'
    bounds = rounding(undisturbed(root, method, 1, 4), expected) if elastic else {}
  run = root / 'trials' / str(seed)
  chain, happened = Chain(Command(root, method, run, processes, devices), rng), []
  try:
    for _ in range(rng.randrange(3, 7)):
      if elastic:
        chain.command = dataclasses.replace(chain.command, devices=rng.choice((4, 8)))
      happened.append(rng.choice(faults)(chain))
    finish(chain, expected, bounds)
    wrong = ''
  except Wrong as error:
    wrong = str(error)
    happened.append(('the end', ''))
  survived = CLOSE if elastic else SURVIVED
  lines = [{'version': __version__, 'seed': seed, 'method': method, 'kind': kind, 'fault': fault,
            'result': STOPPED if told else survived, 'told': told.replace(str(root), '…')[:300]}
           for fault, told in happened]
  if wrong:
    lines[-1].update(result=WRONG, told=wrong.replace(str(root), '…')[:300])
  else:
    shutil.rmtree(run, ignore_errors=True)
  return lines


def rounding(one: Path, other: Path) -> dict[int, float]:
  """How far losses may differ by step, as a share, where the number of devices changes.

  The order of sums changes, and training lets the last digits grow: three times the largest difference so far
  between two undisturbed runs, one on 4 devices and one on 8, and at least 1 %.
  """
  first, second = reports(one), reports(other)
  bounds, most = {}, 0.0
  for step in sorted(first.keys() & second.keys()):
    most = max(most, abs(first[step] - second[step]) / abs(second[step]))
    bounds[step] = max(0.01, 3 * most)
  return bounds


def finish(chain: Chain, expected: Path, bounds: Mapping[int, float]) -> None:
  """Lets a run end, and compares it with the undisturbed one: to the bit if there are no bounds.

  Raises:
    Wrong: if it does not end, or ends otherwise.
  """
  for process in chain.command.start():
    if told := check(ended(process)):
      raise Wrong(f'does not go on: {told}')
  wanted, found = reports(expected), reports(chain.command.run)
  compared = {step: loss for step, loss in found.items() if step > chain.unsure}
  differing = [step for step, loss in compared.items()
               if abs(loss - wanted[step]) > bounds.get(step, 0) * abs(wanted[step])]
  if differing or (max(found, default=0) != STEPS and not chain.reports_lost):
    raise Wrong(f'other losses, first at step {min(differing, default=max(found, default=0))}')
  if not bounds and weights(chain.command.run) != weights(expected):
    raise Wrong('other weights')


def table(lines: list[dict]) -> str:
  """The page: results by fault and by method, and everything that was wrong."""
  results = (SURVIVED, CLOSE, STOPPED, WRONG)
  page = ['# Faults in tiny runs', '',
          'Written by `python -m benchmarks.soak`, which says what a trial is. A run of one or two processes',
          'must end to the bit as an undisturbed one; one whose number of devices changes between 4 and',
          '8, in losses within 1 %, or three times as far as undisturbed runs on 4 and on 8 are from each',
          'other. A sentence of a stop or of a refusal is what a fault should give: the run went on after',
          'it, once the file was put back or the disk had room.', '']
  for key in ('kind', 'fault', 'method'):
    counts = collections.Counter((line[key], line['result']) for line in lines)
    rows = [(name, *(counts[name, result] for result in results))
            for name in sorted({line[key] for line in lines})]
    rows.append(('all', *(sum(row[place] for row in rows) for place in range(1, len(results) + 1))))
    page += [f'| {key} | tried | {" | ".join(results)} |', f'| --- |{" ---: |" * (len(results) + 1)}',
             *(f'| {name} | {sum(found)} | {" | ".join(map(str, found))} |' for name, *found in rows), '']
  page += [f'- {line["method"]}, {line["kind"]}, {line["fault"]}, seed {line["seed"]}: {line["told"]}'
           for line in lines if line['result'] == WRONG]
  return '\n'.join(page).rstrip() + '\n'


def main() -> None:
  """Runs trials until the time is over, and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--minutes', type=float, default=60.0, help='time for trials')
  parser.add_argument('--workers', type=int, default=1, help='trials at a time')
  parser.add_argument('--seed', type=int, help='try this one alone, and keep its run if it is wrong')
  parser.add_argument('--root', type=Path, help='folder of the trials; a temporary one by default')
  arguments = parser.parse_args()
  root = arguments.root or Path(tempfile.mkdtemp(prefix='soak'))
  making = threading.Lock()
  soak_run.heed_signals()
  soak_run.draw_images(root)
  if arguments.seed is not None:
    print(*trial(root, arguments.seed, making), sep='\n')
    return
  lines = [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []
  first = max((line['seed'] for line in lines), default=-1) + 1
  end = time.monotonic() + 60 * arguments.minutes

  def work(worker: int) -> None:
    seed = first + worker
    while time.monotonic() < end:
      found = trial(root, seed, making)
      lines.extend(found)
      with LINES.open('a') as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + '\n' for line in found)
      print(*(f'{line["seed"]} {line["method"]}: {line["fault"]}, {line["result"]} {line["told"]}'
              for line in found), sep='\n', flush=True)
      seed += arguments.workers

  with concurrent.futures.ThreadPoolExecutor(arguments.workers) as pool:
    list(pool.map(work, range(arguments.workers)))
  TABLE.write_text(table(lines))
  print(table(lines))


if __name__ == '__main__':
  main()
