"""Runs what experiments are missing: the runs that have no line yet.

  python -m experiments.sets SETS --cifar10=DIR …      writes the images, once
  python -m experiments.run --data=SETS                everything that is missing
  python -m experiments.run conic_alpha --data=SETS --workers=2 --minutes=170

A run is `python -m conic_jax.main` in its own process. At the scale `cpu` it has one core, if the system can
pin it, so its bits do not depend on other load. Its line is written when it is done; a killed run resumes
from its own checkpoint. Several of these commands can run at once. On Ctrl-C or SIGTERM the runs save and
end. For tables and figures: `python -m experiments.summary`.
"""
import argparse
import contextlib
import datetime
import fcntl
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from benchmarks.hardware import cpu_name
from experiments import jobs
from experiments.figures import describe
from experiments.jobs import HERE, Experiment, Job, Scale
from experiments.scales import SCALES
from experiments.tuning import needed_rates, tuned

ROOT = HERE.parent
DIVERGED = re.compile(r'conic_jax: (The .* was (?:nan|-?inf) at step \d+)')
_LOOK_AGAIN = 5.0  # Seconds after which an idle worker looks for a run again.


def main() -> None:
  """Runs what was asked for until nothing is missing or the time is up."""
  parser = argparse.ArgumentParser('python -m experiments.run', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('names', nargs='*', help=f'experiments, all without: {", ".join(jobs.all_names())}')
  parser.add_argument('--data', type=Path, required=True, help='the folder that experiments.sets wrote')
  parser.add_argument('--scale', choices=SCALES, default='cpu')
  parser.add_argument('--runs', type=Path, default=ROOT / 'runs' / 'experiments')
  parser.add_argument('--workers', type=int, default=1, help='runs at a time, each on a core of its own')
  parser.add_argument('--core', type=int, default=0, help='the first of the cores')
  parser.add_argument('--minutes', type=float, default=float('inf'), help='start no run after so many')
  parser.add_argument('--list', action='store_true', help='say what is missing, and run nothing')
  args = parser.parse_args()
  if unknown := set(args.names) - set(jobs.all_names()):
    parser.error(f'no experiment {", ".join(sorted(unknown))}; available: {", ".join(jobs.all_names())}')
  cores = range(args.core, args.core + args.workers)
  if hasattr(os, 'sched_getaffinity') and not set(cores) <= (ours := os.sched_getaffinity(0)):
    parser.error(f'cores {list(cores)} are not among {sorted(ours)}: change --core or --workers')
  work = Work(jobs.load(args.names or jobs.all_names()), SCALES[args.scale], args.data.absolute(),
              args.runs.absolute())
  missing = work.missing()
  if absent := sorted({str(folder) for job in missing for folder in folders(job, work.data)
                       if not folder.is_dir()}):
    parser.error(f'no {", ".join(absent)}: python -m experiments.sets writes them')
  if args.list:
    for job in missing:
      print(title(job))
    return
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  if not work.do(cores, args.minutes):
    raise SystemExit(1)


def title(job: Job) -> str:
  """The name of a run for messages."""
  return f'{job.experiment}: {job.variant}, seed {job.seed}'


class Work:
  """The missing runs, and the workers that do them."""

  def __init__(self, experiments: Sequence[Experiment], scale: Scale, data: Path, runs: Path,
               root: Path = HERE):
    self.experiments, self.scale, self.data, self.runs, self.root = experiments, scale, data, runs, root
    self._taking = threading.Lock()
    self._tried: set[str] = set()
    self._at_work = 0
    self._failed = False
    self._processes: set[int] = set()
    self._over = threading.Event()

  def missing(self) -> list[Job]:
    """Runs without a line whose settings are known, in the order in which they will be done.

    If a learning rate is not chosen yet, the runs that choose it come first.
    """
    results = jobs.read(self.scale.name, self.root)
    chosen = tuned(self.scale, results)
    found: dict[str, Job] = {}
    for experiment in self.experiments:
      for job in (*needed_rates(experiment, self.scale, chosen), *jobs.jobs(experiment, self.scale, chosen)):
        if job.key not in results:
          found.setdefault(job.key, job)
    return list(found.values())

  def do(self, cores: Sequence[int], minutes: float) -> bool:
    """Works on these cores until nothing is missing, the time is up, or Ctrl-C or SIGTERM arrives.

    Returns:
      True if no run failed.
    """
    end = time.monotonic() + 60 * minutes
    workers = [threading.Thread(target=self._work, args=(core, end)) for core in cores]
    try:
      for worker in workers:
        worker.start()
      for worker in workers:
        worker.join()
    except KeyboardInterrupt:
      self._over.set()
      for process in list(self._processes):
        with contextlib.suppress(ProcessLookupError):
          os.kill(process, signal.SIGTERM)  # The run saves and ends.
      for worker in workers:
        if worker.ident is not None:
          worker.join()
      raise SystemExit('Stopped: the same command goes on from here.') from None
    return not self._failed

  def _work(self, core: int, end: float) -> None:
    if self.scale.name == 'cpu' and hasattr(os, 'sched_setaffinity'):
      os.sched_setaffinity(0, {core})  # This thread and the processes that it starts.
    while not self._over.is_set() and time.monotonic() < end:
      with contextlib.ExitStack() as stack:
        taken = self._take(stack)
        if taken is None:
          if not self._at_work:
            return
          self._over.wait(_LOOK_AGAIN)  # Another worker's run may choose a rate that others wait for.
          continue
        job, lock = taken
        try:
          self._run(job, lock)
        except (OSError, KeyError, ValueError) as error:  # Its files cannot be read, or its line not written.
          self._failed = True
          print(f'{title(job)}: failed, {type(error).__name__}: {error}', flush=True)
        finally:
          with self._taking:
            self._at_work -= 1

  def _take(self, stack: contextlib.ExitStack) -> tuple[Job, IO[str]] | None:
    """The first run that nobody is doing, and its lock, which is held until the stack closes."""
    with self._taking:
      for job in self.missing():
        if job.key in self._tried or (lock := stack.enter_context(_locked(self.folder(job)))) is None:
          continue
        # It may have finished between the check and the lock.
        if job.key not in jobs.read(self.scale.name, self.root):
          self._tried.add(job.key)
          self._at_work += 1
          return job, lock
    return None

  def folder(self, job: Job) -> Path:
    """The folder of a run, named by what it computes."""
    return self.runs / self.scale.name / hashlib.sha256(job.key.encode()).hexdigest()[:16]

  def _run(self, job: Job, lock: IO[str]) -> None:
    folder, used = self.folder(job), 0.0
    log, resumed = folder.with_suffix('.log'), folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    for argv in commands(job, self.scale.preset, folder, self.data):
      begun = log.stat().st_size if log.exists() else 0
      ended_well, seconds = self._call(argv, log, lock)
      used += seconds
      if not ended_well:
        said = DIVERGED.findall(log.read_bytes()[begun:].decode(errors='replace'))
        if said:  # It would diverge every time.
          jobs.append(job, {'figures': {}, 'diverged': said[-1], **circumstances()}, self.root)
          print(f'{title(job)}: diverged. {said[-1]}', flush=True)
        elif self._over.is_set():
          print(f'{title(job)}: stopped', flush=True)
        else:
          self._failed = True
          print(f'{title(job)}: failed, see {log}', flush=True)
        return
    lasting = {} if resumed else {'core_seconds': round(used)}
    jobs.append(job, {**describe(job, folder), **lasting, **circumstances()}, self.root)
    print(f'{title(job)}: done, {used:.0f} s of a core', flush=True)

  def _call(self, argv: Sequence[str], log: Path, lock: IO[str]) -> tuple[bool, float]:
    """Whether a command succeeded, and the core seconds it used; its output goes to the log.

    The command holds the lock too, because it lives on if this process is killed. It has its own process
    group, so Ctrl-C reaches it once, through this process.
    """
    environment = {**os.environ, **({'JAX_PLATFORMS': 'cpu'} if self.scale.name == 'cpu' else {})}
    with log.open('ab') as file, subprocess.Popen(
        [sys.executable, '-m', *argv], env=environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
        pass_fds=(lock.fileno(),), process_group=0) as process:
      self._processes.add(process.pid)
      if self._over.is_set():
        process.terminate()
      _, status, usage = os.wait4(process.pid, 0)
      self._processes.discard(process.pid)
      process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode == 0, usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[IO[str] | None]:
  """The lock of a folder; None if another process has it. The system frees the lock of a dead process."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  with folder.with_suffix('.lock').open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield None
    else:
      yield file


def commands(job: Job, preset: str, folder: Path, data: Path) -> list[list[str]]:
  """What comes before the training, the training, if there is one, and the measurements after it."""
  filled = lambda argv: [part.format(run=folder, data=data, seed=job.seed) for part in argv]
  found = [filled(argv) for argv in job.before]
  if job.config:
    file, _, own_preset = job.config.partition(':')
    settings = {**job.settings, 'run': str(folder), 'seed': job.seed}
    if 'encoder.weights' in settings:
      settings['encoder.weights'] = settings['encoder.weights'].format(run=folder)
    if 'data.dir' in settings:
      settings['data.dir'] = str(data / settings['data.dir'])
    found.append(['conic_jax.main', f'--config=configs/{file}.py:{own_preset or preset}',
                  *(f'--config.{field}={flag(value)}' for field, value in settings.items())])
  return found + [filled(step.argv) for step in job.after]


def folders(job: Job, data: Path) -> list[Path]:
  """The data folders that a run reads."""
  named = [data / job.settings['data.dir']] if 'data.dir' in job.settings else []
  return [*named, *(data / part.split('{data}/')[1] for argv in job.around for part in argv
                    if '{data}/' in part)]


def flag(value: object) -> str:
  """A value as the command line accepts it: lists become tuples."""
  return str(tuple(value)) if isinstance(value, (list, tuple)) else str(value)


def circumstances() -> dict[str, str]:
  """The processor and the date."""
  return {'cpu': cpu_name(), 'date': datetime.date.today().isoformat()}


if __name__ == '__main__':
  main()
