"""What happens to a run in `benchmarks.soak`: each fault harms it, and leaves it for the next command."""
import dataclasses
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from benchmarks.soak_run import STEPS, Command, Ended, await_handlers, ended, reports
from conic_jax.hardware.watch import LOST

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Sizes that some files of a run exceed, in bytes.
LIMITS = (0, 100, 1000, 3000, 6000, 10_000, 30_000)


class Wrong(Exception):
  """What must not happen."""


@dataclasses.dataclass
class Chain:
  """A run and what happened to it.

  Attributes:
    command: starts it.
    rng: decides what happens.
    unsure: reports up to this step were damaged on purpose: they are not compared.
    reports_lost: whether there was no room for the last reports.
  """
  command: Command
  rng: random.Random
  unsure: int = 0
  reports_lost: bool = False

  def start(self, **how) -> list[subprocess.Popen]:
    """Gives the command, and waits for some further step of the run, or until it heeds signals."""
    processes = self.command.start(**how)
    last = max(reports(self.command.run), default=0)
    self.command.await_step(processes, min(STEPS - 1, last + self.rng.randrange(1, 12)))
    for process in processes:
      await_handlers(process)
    time.sleep(self.rng.uniform(0, 0.2))
    return processes

  @property
  def over(self) -> bool:
    """Whether the run has taken all its steps, so that nothing tells how far a command has come."""
    return max(reports(self.command.run), default=0) >= STEPS - 1


def check(outcome: Ended, run: Path | None = None) -> str:
  """'' if a process ended well, or the sentence with which it stopped.

  Raises:
    Wrong: if it hung, or ended in any other way.
  """
  if outcome.code is None:
    raise Wrong(f'hang: {outcome.told}')
  if run and (run / 'summary.json').exists() and not outcome.told and -(outcome.code or 0) in STOPS:
    return ''  # The signal came after all had been done, while Python was ending.
  if outcome.traceback or (outcome.code and not outcome.told.startswith('conic_jax: ')):
    raise Wrong(f'code {outcome.code}: {outcome.told}')
  return outcome.told if outcome.code else ''


def check_all(processes: list[subprocess.Popen], run: Path | None = None) -> str:
  """As `check`, of the first of some processes, once all have ended well."""
  told, *_ = [check(ended(process), run) for process in processes]
  return told


def kill(chain: Chain) -> tuple[str, str]:
  kill_all(chain.start())
  return 'kill -9', ''


def stop(chain: Chain) -> tuple[str, str]:
  processes = chain.start()
  chain.rng.choice(processes).send_signal(chain.rng.choice(STOPS))
  return 'SIGINT, SIGTERM or SIGHUP', check_all(processes, chain.command.run)


def stop_twice(chain: Chain) -> tuple[str, str]:
  processes = chain.start()
  for process in processes:
    process.send_signal(chain.rng.choice(STOPS))
  time.sleep(chain.rng.uniform(0, 0.5))
  for process in processes:
    process.send_signal(chain.rng.choice(STOPS))
  return 'two signals', check_all(processes, chain.command.run)


def fill(chain: Chain) -> tuple[str, str]:
  processes = chain.start(file_size=chain.rng.choice(LIMITS))
  told = check_all(processes)
  chain.reports_lost = chain.reports_lost or max(reports(chain.command.run), default=0) < STEPS
  return 'a full disk', told


def start_twice(chain: Chain) -> tuple[str, str]:
  if max(reports(chain.command.run), default=0) == STEPS:
    return kill(chain)  # Of a run that has ended either start may be the first.
  processes = chain.start()
  second = dataclasses.replace(chain.command, processes=1).start()[0]
  outcome = ended(second)
  still_there = all(process.poll() is None for process in processes)
  told = check(outcome)
  if still_there and 'in use by' not in told:
    raise Wrong(f'the second start was let in: {told}')
  kill_all(processes)
  return 'a second start', told


def jump(chain: Chain) -> tuple[str, str]:
  processes = chain.start(jumping_clock=True)
  for process in processes:
    process.send_signal(signal.SIGTERM)  # Of one that has ended, this does nothing.
  return 'a clock that jumps', check_all(processes, chain.command.run)


def damage(chain: Chain) -> tuple[str, str]:
  """One file is changed; where a sentence says so, the file is put back, as the sentence asks."""
  run, rng = chain.command.run, chain.rng
  files = sorted(path for path in run.rglob('*') if path.is_file() and path.stat().st_size)
  if not files:
    return kill(chain)
  path = rng.choice(files)
  name = f'damage: {path.relative_to(run).parts[0]}'
  if path.name == 'metrics.jsonl':
    chain.unsure = max(reports(run), default=0)
  was_over = chain.over
  kept = shutil.copyfile(path, run.with_name(run.name + '.kept'))
  harm(path, rng)
  processes = chain.start()
  told = ''
  if was_over or any(process.poll() is not None for process in processes):
    told = check_all(processes)  # One that is killed before it looked has not said what is damaged.
  kill_all(processes)
  if told:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kept, path)
  kept.unlink()
  return name, told


def harm(path: Path, rng: random.Random) -> None:
  """Flips, zeroes, cuts, empties, lengthens or deletes a file."""
  content = bytearray(path.read_bytes())
  place, how = rng.randrange(len(content)), rng.choice(('flip', 'zero', 'cut', 'empty', 'append', 'delete'))
  match how:
    case 'flip':
      content[place] ^= 1 << rng.randrange(8)
    case 'zero':
      content[place:place + 4096] = bytes(len(content[place:place + 4096]))
    case 'cut':
      del content[place:]
    case 'empty':
      content.clear()
    case 'append':
      content += rng.randbytes(9)
  if how == 'delete':
    path.unlink()
  else:
    path.write_bytes(content)


def lose_one(chain: Chain) -> tuple[str, str]:
  processes = chain.start()
  lost, left = chain.rng.sample(processes, 2)
  was_over = left.poll() is not None
  lost.kill()
  lost.communicate()
  outcome = ended(left)
  told = check(outcome)
  if outcome.code != LOST and not was_over and (outcome.code or max(reports(chain.command.run)) < STEPS):
    raise Wrong(f'code {outcome.code} after a process was lost: {told}')
  return 'one of two processes killed', told


def suspend_one(chain: Chain) -> tuple[str, str]:
  processes = chain.start()
  suspended, left = chain.rng.sample(processes, 2)
  suspended.send_signal(signal.SIGSTOP)
  told = check(ended(left))
  suspended.send_signal(signal.SIGCONT)
  check(ended(suspended))
  return 'one of two processes suspended', told


def kill_all(processes: list[subprocess.Popen]) -> None:
  """Kills what still runs."""
  for process in processes:
    process.kill()
  for process in processes:
    process.communicate()


ALONE = (kill, stop, stop_twice, fill, start_twice, jump, damage, damage, damage)
TOGETHER = (kill, stop, stop_twice, fill, start_twice, lose_one, suspend_one, damage)
ELASTIC = (kill, stop)
