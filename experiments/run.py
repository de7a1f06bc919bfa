"""Does the runs of experiments that have no line yet.

  python -m experiments.sets SETS --cifar10=DIR …      writes the images, once
  python -m experiments.run --data=SETS                everything that is missing
  python -m experiments.run conic_alpha --data=SETS --workers=2 --minutes=170

A run is `python -m conic_jax.main` in a process of its own on one core, where the system can pin it, so that
its bits do not depend on what else runs. Its line is kept when it is done; a run that was killed goes on from
its own checkpoint. Several of these commands may work at once. Tables and pictures:
`python -m experiments.summary`.
"""
import argparse
import contextlib
import datetime
import fcntl
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.hardware import cpu_name
from experiments import jobs
from experiments.jobs import HERE, Experiment, Job, Scale
from experiments.scales import SCALES
from experiments.tuning import tuned

# Of the last epoch's reports a mean, of the last report the figure.
AVERAGED = ('loss', 'loss_instance', 'loss_consistency', 'instance_top1', 'feature_std', 'alignment',
            'uniformity', 'consistency_weight')
BY_EPOCH = ('loss_instance', 'alignment', 'uniformity')
LAST = ('probe_instance_top1', 'probe_rankme', 'probe_lidar', 'probe_std', 'verdict')
EVALUATED = ('knn_top1', 'linear_top1', 'num_images')
BASELINES = ('random_init', 'pixels')


def main() -> None:
  """Runs what is asked for until nothing is missing, or time is over."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('names', nargs='*', help='experiments; all without')
  parser.add_argument('--data', type=Path, required=True, help='the folder that experiments.sets wrote')
  parser.add_argument('--scale', choices=SCALES, default='cpu')
  parser.add_argument('--runs', type=Path, default=Path('runs/experiments'))
  parser.add_argument('--workers', type=int, default=1, help='runs at a time, each on a core of its own')
  parser.add_argument('--core', type=int, default=0, help='the first of the cores')
  parser.add_argument('--minutes', type=float, default=float('inf'), help='start no run after so many')
  parser.add_argument('--list', action='store_true', help='say what is missing, and run nothing')
  args = parser.parse_args()
  experiments = jobs.load(args.names or jobs.all_names())
  work = Work(experiments, SCALES[args.scale], args.data, args.runs)
  if args.list:
    for job in work.missing():
      print(f'{job.experiment}: {job.variant}, seed {job.seed}')
    return
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  work.do(range(args.core, args.core + args.workers), args.minutes)


class Work:
  """The runs that are missing, and the workers that do them."""

  def __init__(self, experiments: Sequence[Experiment], scale: Scale, data: Path, runs: Path,
               root: Path = HERE):
    self.experiments, self.scale, self.data, self.runs, self.root = experiments, scale, data, runs, root
    self._taking = threading.Lock()
    self._tried: set[str] = set()
    self._processes: set[subprocess.Popen[bytes]] = set()
    self._over = threading.Event()

  def missing(self) -> list[Job]:
    """Runs without a line whose settings are known, in the order in which they are done."""
    results = jobs.read(self.scale.name, self.root)
    chosen = tuned(self.scale, results)
    found = {job.key: job for experiment in self.experiments
             for job in jobs.jobs(experiment, self.scale, chosen) if job.key not in results}
    return list(found.values())

  def do(self, cores: Sequence[int], minutes: float) -> None:
    """Works on these cores until nothing is missing, time is over, or Ctrl-C or SIGTERM comes."""
    end = time.monotonic() + 60 * minutes
    workers = [threading.Thread(target=self._work, args=(core, end)) for core in cores]
    for worker in workers:
      worker.start()
    try:
      for worker in workers:
        worker.join()
    except KeyboardInterrupt:
      self._over.set()
      for process in list(self._processes):
        process.terminate()  # It saves and ends.
      for worker in workers:
        worker.join()
      raise SystemExit('Stopped: the same command goes on from here.') from None

  def _work(self, core: int, end: float) -> None:
    if hasattr(os, 'sched_setaffinity'):
      os.sched_setaffinity(0, {core})  # This thread, and the processes that it starts.
    while not self._over.is_set() and time.monotonic() < end:
      with contextlib.ExitStack() as stack:
        job = self._take(stack)
        if job is None:
          return
        self._run(job)

  def _take(self, stack: contextlib.ExitStack) -> Job | None:
    """The first run that nobody does, locked until the stack closes."""
    with self._taking:
      for job in self.missing():
        if job.key in self._tried or not stack.enter_context(_locked(self.folder(job))):
          continue
        # It may have been finished between the look and the lock.
        if job.key not in jobs.read(self.scale.name, self.root):
          self._tried.add(job.key)
          return job
    return None

  def folder(self, job: Job) -> Path:
    """Where a run lies: named by what it computes."""
    return self.runs / self.scale.name / hashlib.sha256(job.key.encode()).hexdigest()[:16]

  def _run(self, job: Job) -> None:
    folder, name = self.folder(job), f'{job.experiment}: {job.variant}, seed {job.seed}'
    resumed, used = folder.exists(), 0.0
    folder.mkdir(parents=True, exist_ok=True)
    for argv in commands(job, self.scale.preset, folder, self.data):
      ended_well, seconds = self._call(argv, folder.with_suffix('.log'))
      used += seconds
      if not ended_well:
        outcome = 'stopped' if self._over.is_set() else f'failed, see {folder.with_suffix(".log")}'
        print(f'{name}: {outcome}', flush=True)
        return
    lasting = {} if resumed else {'core_seconds': round(used)}
    jobs.append(job, {'figures': figures(job, folder), **lasting, 'cpu': cpu_name(),
                      'date': datetime.date.today().isoformat(), **versions(folder)}, self.root)
    print(f'{name}: done, {used:.0f} s of a core', flush=True)

  def _call(self, argv: Sequence[str], log: Path) -> tuple[bool, float]:
    """Whether a command ended well, and the seconds of a core it used; what it says goes to the log."""
    environment = {**os.environ, **({'JAX_PLATFORMS': 'cpu'} if self.scale.name == 'cpu' else {})}
    with log.open('ab') as file, subprocess.Popen([sys.executable, '-m', *argv], env=environment,
                                                  stdout=file, stderr=subprocess.STDOUT) as process:
      self._processes.add(process)
      if self._over.is_set():
        process.terminate()
      _, status, usage = os.wait4(process.pid, 0)
      process.returncode = os.waitstatus_to_exitcode(status)
      self._processes.discard(process)
    return process.returncode == 0, usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
  """Whether this process alone works in a folder until the context ends; a dead process's lock is free."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  with folder.with_suffix('.lock').open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield False
    else:
      yield True


def commands(job: Job, preset: str, folder: Path, data: Path) -> list[list[str]]:
  """The training, where there is one, and what is measured after it."""
  found = []
  if job.config:
    file, _, own_preset = job.config.partition(':')
    settings = {**job.settings, 'run': str(folder), 'seed': job.seed}
    if 'data.dir' in settings:
      settings['data.dir'] = str(data / settings['data.dir'])
    found.append(['conic_jax.main', f'--config=configs/{file}.py:{own_preset or preset}',
                  *(f'--config.{field}={flag(value)}' for field, value in settings.items())])
  for step in job.after:
    found.append([part.format(run=folder, data=data, seed=job.seed) for part in step.argv])
  return found


def flag(value: Any) -> str:
  """A value as the command line takes it: a list is a tuple there."""
  return str(tuple(value)) if isinstance(value, (list, tuple)) else str(value)


def figures(job: Job, folder: Path) -> dict[str, Any]:
  """What a finished run is worth: its evaluation, its last epoch, and what was measured after it."""
  found: dict[str, Any] = {}
  if job.config:
    config = json.loads((folder / 'config.json').read_text())
    found['epochs'] = config['epochs']
    reports = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    summary = json.loads((folder / 'summary.json').read_text())
    # A run that goes on reports its first step too.
    regular = [report for report in reports if report['step'] % config['log_every'] == 0]
    last_epoch = [report for report in regular if report['epoch'] > reports[-1]['epoch'] - 1]
    for name in AVERAGED:
      if values := [report[name] for report in last_epoch if name in report]:
        found[name] = sum(values) / len(values)
    found['by_epoch'] = by_epoch(regular)
    found |= {name: report[name] for report in reports for name in LAST if name in report}
    found |= {name: summary[name] for name in EVALUATED if name in summary}
    found |= {f'{where}_{name}': summary[where][name] for where in BASELINES if where in summary
              for name in EVALUATED if name in summary[where]}
  for step in job.after:
    result = json.loads((folder / step.file).read_text())
    found |= {name: result[name] for name in step.names}
  return found


def by_epoch(reports: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
  """Means of the reports of every epoch, of the figures that all have."""
  epochs: dict[int, list[Mapping[str, Any]]] = {}
  for report in reports:
    if 'loss' in report:
      epochs.setdefault(math.ceil(report['epoch']), []).append(report)
  return {name: [round(sum(report[name] for report in epoch) / len(epoch), 5) for epoch in epochs.values()]
          for name in BY_EPOCH if all(name in report for epoch in epochs.values() for report in epoch)}


def versions(folder: Path) -> dict[str, Any]:
  """Of the libraries, where a training wrote them."""
  path = folder / 'config.json'
  return {'versions': json.loads(path.read_text())['versions']} if path.exists() else {}


if __name__ == '__main__':
  main()
