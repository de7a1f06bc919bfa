"""Faults of every kind in tiny runs of every method, for as long as you like: does a run survive?

  python -m benchmarks.soak --minutes=120 --workers=2

Each trial starts a run in processes of its own, does something random to it (a kill, signals, a full disk, a
second start, damage to a file), and gives the same command again until the run ends. It must end in the same
losses and weights as an undisturbed run, or a command must stop with one sentence. All else is wrong: a
traceback, a hang, other numbers. Trials are kept in benchmarks/results/soak.jsonl; the table is made of all.
"""
import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from conic_jax import __version__
from conic_jax.run.checkpoints import restore_model

RESULTS = Path(__file__).parent / 'results'
LINES, TABLE = RESULTS / 'soak.jsonl', RESULTS / 'soak.md'
STEPS, SECONDS = 36, 240
COMMON = {
  'data.name': 'folder', 'data.train': '', 'data.test': '', 'epochs': 6, 'batch_size': 16, 'log_every': 1,
  'views.size': 16, 'eval.resize': 16, 'encoder.name': 'resnet18', 'encoder.stem': 'cifar',
  'encoder.blocks': '(1,)', 'encoder.width': 0.125, 'head.hidden': 16, 'head.features': 8, 'probe.images': 0,
  'knn_every': 0, 'eval.knn': False, 'eval.linear': False, 'eval.baselines': False,
  'checkpoint.every_epochs': 0.5, 'dtype': 'float32'}
_QUEUE = {'queue.size': 37, 'batch_norm.groups': 2}
METHODS = {
  'conic': ('conic', {}),
  'conic_s, rows on disk': ('conic_s', {'classifier.store': 'disk', 'classifier.window': 24}),
  'conic_s, rows in memory': ('conic_s', {'classifier.store': 'host', 'classifier.window': 24}),
  'one_million': ('one_million', {'smoothing.k': 5}), 'pic': ('pic', {'classifier.window': 24}),
  'exemplar': ('exemplar', {}), 'moco': ('moco_v2', _QUEUE), 'co2': ('co2_moco_v2', _QUEUE),
  'inscon': ('inscon', {**_QUEUE, 'head.norm': False, 'cell.hidden': 16, 'cell.features': 8,
                        'cell.queue': 150}),
  'byol': ('byol', {'predictor.hidden': 16}), 'simclr': ('simclr', {}),
  'instdisc': ('instdisc', {'loss.noise': 12}), 'align_uniform': ('align_uniform', _QUEUE)}
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where trials run: the images, the cache of compiled programs, and the undisturbed runs."""
  root: Path

  def command(self, method: str, run: Path) -> list[str]:
    """The command that starts a run, and goes on with it."""
    config, own = METHODS[method]
    fields = {**COMMON, **own, 'run': run, 'data.dir': self.root / 'images'}
    return [sys.executable, '-m', 'conic_jax.main', f'--config=configs/{config}.py:photos',
            *(f'--config.{name}={value}' for name, value in fields.items())]

  def start(self, method: str, run: Path, file_size: int | None = None) -> subprocess.Popen:
    """Starts it, with a limit on the size of files in bytes if the disk is to be full."""
    command = self.command(method, run)
    if file_size is not None:
      command = [sys.executable, '-c', 'import os, resource, signal, sys; '
                 'signal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
                 f'resource.setrlimit(resource.RLIMIT_FSIZE, ({file_size},) * 2); '
                 'os.execv(sys.argv[1], sys.argv[1:])', *command]
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3',
                   'JAX_COMPILATION_CACHE_DIR': str(self.root / 'compiled'),
                   'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
                   'XLA_FLAGS': '--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0'}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            env=environment)


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a command ended: None as a code is a hang; `told` is its last line on stderr."""
  code: int | None
  told: str
  traceback: bool


def ended(process: subprocess.Popen) -> Ended:
  """Waits for a command."""
  try:
    _, errors = process.communicate(timeout=SECONDS)
  except subprocess.TimeoutExpired:
    process.kill()
    _, errors = process.communicate()
    return Ended(None, errors.strip().rpartition('\n')[2], 'Traceback' in errors)
  return Ended(process.returncode, errors.strip().rpartition('\n')[2], 'Traceback' in errors)


def reports(run: Path) -> dict[int, float]:
  """The losses of a run by step, as far as they can be read."""
  losses = {}
  with contextlib.suppress(OSError):
    for line in (run / 'metrics.jsonl').read_text(errors='replace').splitlines():
      with contextlib.suppress(ValueError, TypeError, KeyError):
        report = json.loads(line)
        losses[report['step']] = report['loss']
  return losses


def await_step(process: subprocess.Popen, run: Path, step: int) -> None:
  """Waits until a run has reported a step, or has ended."""
  end = time.monotonic() + SECONDS
  while process.poll() is None and time.monotonic() < end and max(reports(run), default=0) < step:
    time.sleep(0.01)


def weights(run: Path) -> str:
  """A hash of a finished run's weights."""
  found = hashlib.sha256()
  for leaf in jax.tree.leaves(restore_model(run)):
    found.update(np.ascontiguousarray(leaf).tobytes())
  return found.hexdigest()


# ---- Faults: each harms a new run and gives its own name ------------------------------------------


def kill(place: Place, method: str, run: Path, rng: random.Random) -> str:
  process = place.start(method, run)
  await_step(process, run, rng.randrange(STEPS))
  time.sleep(rng.uniform(0, 0.1))
  process.kill()
  process.communicate()
  return 'kill -9'


def stop(place: Place, method: str, run: Path, rng: random.Random) -> str:
  process = place.start(method, run)
  await_step(process, run, rng.randrange(STEPS))
  first = rng.choice(STOPS)
  process.send_signal(first)
  if twice := rng.random() < 0.4:
    time.sleep(rng.uniform(0, 0.5))
    process.send_signal(rng.choice(STOPS))
  outcome = ended(process)
  if outcome.code is None or (outcome.traceback and not twice):
    raise Wrong(f'{first.name}: {outcome.told or "hang"}')
  return 'two signals' if twice else 'a signal'


def fill(place: Place, method: str, run: Path, rng: random.Random) -> str:
  half_way(place, method, run, rng)
  check(ended(place.start(method, run, file_size=rng.choice((0, 100, 1000, 3000, 6000, 10_000, 30_000)))))
  return 'a full disk'


def start_twice(place: Place, method: str, run: Path, rng: random.Random) -> str:
  first = place.start(method, run)
  await_step(first, run, rng.randrange(1, STEPS // 2))
  second = ended(place.start(method, run))
  if first.poll() is None and 'in use by' not in second.told:
    raise Wrong(f'the second start was let in: {second.told}')
  check(ended(first))
  return 'a second start'


def damage(place: Place, method: str, run: Path, rng: random.Random) -> str:
  half_way(place, method, run, rng)
  files = sorted(path for path in run.rglob('*') if path.is_file() and path.stat().st_size)
  path = rng.choice(files)
  how = rng.choice(('flip', 'zero', 'cut', 'empty', 'delete', 'append'))
  content = bytearray(path.read_bytes())
  place_of = rng.randrange(len(content))
  match how:
    case 'flip':
      content[place_of] ^= 1 << rng.randrange(8)
    case 'zero':
      content[place_of:place_of + 4096] = bytes(len(content[place_of:place_of + 4096]))
    case 'cut':
      del content[place_of:]
    case 'empty':
      content.clear()
    case 'append':
      content += rng.randbytes(9)
  if how == 'delete':
    path.unlink()
  else:
    path.write_bytes(content)
  return f'damage: {path.relative_to(run).parts[0]}'


FAULTS = (kill, stop, fill, start_twice, damage, damage, damage)


class Wrong(Exception):
  """What must not happen."""


class Sentence(Exception):
  """A command stopped, and said why in one sentence."""


def check(outcome: Ended) -> bool:
  """Whether a command ended well.

  Raises:
    Sentence: if it stopped with a sentence.
    Wrong: if it hung, or ended in any other way.
  """
  if outcome.code is None:
    raise Wrong(f'hang: {outcome.told}')
  if outcome.traceback or (outcome.code and not outcome.told.startswith('conic_jax: ')):
    raise Wrong(f'code {outcome.code}: {outcome.told}')
  return outcome.code == 0


def half_way(place: Place, method: str, run: Path, rng: random.Random) -> None:
  """Runs until some step after the first checkpoint, and stops."""
  process = place.start(method, run)
  await_step(process, run, rng.randrange(STEPS // 4, STEPS - 1))
  process.send_signal(rng.choice((signal.SIGTERM, signal.SIGKILL)))
  process.communicate(timeout=SECONDS)


def trial(place: Place, method: str, seed: int) -> dict:
  """One fault, and what came of it."""
  rng = random.Random(seed)
  fault = rng.choice(FAULTS)
  run = place.root / 'trials' / str(seed)
  name, told = fault.__name__, ''
  try:
    name = fault(place, method, run, rng)
    outcome = ended(place.start(method, run))
    if not check(outcome):
      raise Sentence(outcome.told)
    undisturbed = place.root / 'undisturbed' / method
    expected, found = reports(undisturbed), reports(run)
    if any(expected[step] != loss for step, loss in found.items()) or max(found) != STEPS:
      raise Wrong('other losses')
    if weights(run) != weights(undisturbed):
      raise Wrong('other weights')
    result = 'survived to the bit'
  except Sentence as sentence:
    result, told = 'stopped with a sentence', str(sentence)
  except Wrong as wrong:
    result, told = 'wrong', str(wrong)
  if result != 'wrong':
    shutil.rmtree(run, ignore_errors=True)
  return {'version': __version__, 'method': method, 'seed': seed, 'fault': name, 'result': result,
          'told': told.replace(str(place.root), '…')[:300]}


def prepare(place: Place) -> None:
  """Draws the images, and makes the undisturbed run of each method."""
  rng = np.random.default_rng(0)
  for index in range(96):
    path = place.root / 'images' / 'ab'[index % 2] / f'{index:02d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
  for method in METHODS:
    outcome = ended(place.start(method, place.root / 'undisturbed' / method))
    if outcome.code:
      raise SystemExit(f'The undisturbed run of {method} failed: {outcome.told}')


def table(lines: list[dict]) -> str:
  """The page: results by fault and by method, and everything that was wrong."""
  results = ('survived to the bit', 'stopped with a sentence', 'wrong')
  page = ['# Faults in tiny runs', '',
          '`python -m benchmarks.soak`: each trial does one thing to a tiny run of one method on two CPU',
          'devices, and gives the same command again.', '']
  for key in ('fault', 'method'):
    counts = collections.Counter((line[key], line['result']) for line in lines)
    names = sorted({line[key] for line in lines})
    rows = [(name, *(counts[name, result] for result in results)) for name in names]
    rows.append(('all', *(sum(row[place] for row in rows) for place in (1, 2, 3))))
    page += [f'| {key} | tried | {" | ".join(results)} |', '| --- | ---: | ---: | ---: | ---: |',
             *(f'| {name} | {sum(found)} | {" | ".join(map(str, found))} |' for name, *found in rows), '']
  wrong = [line for line in lines if line['result'] == 'wrong']
  page += [f'- {line["method"]}, {line["fault"]}, seed {line["seed"]}: {line["told"]}' for line in wrong]
  return '\n'.join(page).rstrip() + '\n'


def main() -> None:
  """Runs trials until the time is over, and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--minutes', type=float, default=60.0, help='time for trials')
  parser.add_argument('--workers', type=int, default=1, help='trials at a time')
  parser.add_argument('--seed', type=int, help='try this one alone, and keep its run')
  parser.add_argument('--root', type=Path, help='folder of the trials; a temporary one by default')
  arguments = parser.parse_args()
  place = Place(arguments.root or Path(tempfile.mkdtemp(prefix='soak')))
  if not (place.root / 'images').is_dir():
    prepare(place)
  lines = [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []
  methods, end = sorted(METHODS), time.monotonic() + 60 * arguments.minutes
  if arguments.seed is not None:
    print(trial(place, methods[arguments.seed % len(methods)], arguments.seed))
    return
  first = max((line['seed'] for line in lines), default=-1) + 1

  def work(worker: int) -> None:
    seed = first + worker
    while time.monotonic() < end:
      line = trial(place, methods[seed % len(methods)], seed)
      lines.append(line)
      with LINES.open('a') as file:
        file.write(json.dumps(line, ensure_ascii=False) + '\n')
      print(line['result'], line['fault'], line['method'], line['told'], flush=True)
      seed += arguments.workers

  with concurrent.futures.ThreadPoolExecutor(arguments.workers) as pool:
    list(pool.map(work, range(arguments.workers)))
  TABLE.write_text(table(lines))
  print(table(lines))


if __name__ == '__main__':
  main()
