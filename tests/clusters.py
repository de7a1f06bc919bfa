"""Commands in processes of their own, several of them as a cluster."""
import contextlib
import functools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from forks import ROOT, Forked
from support import flags_of, reserved_port
from xla_flags import xla_flags

from conic_jax.run.whole import steps_in


def start(command, before=(), **environment):
  """Starts a command of Python, with these words before it."""
  return subprocess.Popen([*before, sys.executable, *map(str, command)], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), **environment})


def fork(command, **environment):
  """As `start`, in a process that has imported the library before it begins."""
  return Forked(command, {**os.environ, 'PYTHONPATH': str(ROOT), **environment})


def finish(process, seconds=90):
  """A process's exit code, output and errors, once it has ended."""
  out, err = process.communicate(timeout=seconds)
  return process.returncode, out, err


@contextlib.contextmanager
def ended(processes):
  """Processes that are killed if a test leaves them behind."""
  try:
    yield processes
  finally:
    for process in processes:
      process.kill()
      process.wait()
      process.stdout.close()
      process.stderr.close()


def wait_for(processes, condition, seconds=120):
  """Waits for a condition while processes run."""
  end = time.monotonic() + seconds
  while not condition():
    for process in processes:
      assert process.poll() is None, process.communicate()
    assert time.monotonic() < end, 'timed out'
    time.sleep(0.05)


def assert_one_sentence(process, code, pattern, written=''):
  """The process ended with this code and said one line that matches, without chatter."""
  ended_with, out, err = finish(process)
  assert ended_with == code, err
  assert len(err.strip().splitlines()) == 1, err
  assert re.search(pattern, err), err
  assert written in (None, out)


@contextlib.contextmanager
def running(config, *flags, host='127.0.0.1', before=((), ())):
  """The command on two processes, of which 0 listens at `host`, with these words before each command."""
  command = ['-W', 'ignore', '-m', 'conic_jax.main', *flags_of(config), '--num_processes=2', *flags]
  begins = [functools.partial(start, before=words) if words else fork for words in before]
  with reserved_port() as port, ended([
      begin([*command, f'--coordinator={host}:{port}', f'--process_id={index}'], XLA_FLAGS=xla_flags(1))
      for index, begin in enumerate(begins)]) as processes:
    yield processes


@contextlib.contextmanager
def pretraining(config, *flags, **options):
  """As `running`, once the command has saved a checkpoint."""
  folder = Path(config.run, 'checkpoints')
  saved = max(steps_in(folder), default=0)
  with running(config, *flags, **options) as processes:
    wait_for(processes, lambda: max(steps_in(folder), default=0) > saved)
    yield processes
