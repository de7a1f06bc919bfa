"""Runs tests of a copy of the checkout with one fault after another.

Each line that it reads is a job: a file, its text, the tests, and the seconds that these may take. It imports
what takes long once, and forks for every job, so that what a fault breaks ends with the child.
"""
import contextlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import flax.linen  # noqa: F401
import jax  # noqa: F401
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401
import pytest
import tensorflow  # noqa: F401

_POLL = 0.05
_BROKEN = 70  # What the child exits with where pytest itself fails.
_OPTIONS = ('-x', '-q', '-p', 'no:cacheprovider', '--basetemp=pytest')


class _Ending:
  """What pytest exits with. It can raise afterwards: warnings of what a failed test left open are errors."""
  code = _BROKEN

  def pytest_sessionfinish(self, exitstatus: int) -> None:
    """Keeps what pytest exits with."""
    self.code = int(exitstatus) or _BROKEN


def main() -> None:
  """Answers each job with a line: what pytest exited with, None where it ran out of time, and the seconds."""
  for line in sys.stdin:
    job = json.loads(line)
    path = Path(job['file'])
    whole = path.read_text()
    path.write_text(job['text'])
    try:
      begun = time.monotonic()
      code = run(job['tests'], job['seconds'])
      print(json.dumps({'code': code, 'seconds': time.monotonic() - begun}), flush=True)
    finally:
      path.write_text(whole)


def run(tests: list[str], seconds: float) -> int | None:
  """What pytest exits with; None where it took longer. Whatever it started ends with it."""
  child = os.fork()
  if child == 0:
    os.setsid()
    log = os.open('mutation.log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    ending = _Ending()
    try:
      ending.code = int(pytest.main([*_OPTIONS, *tests], plugins=[ending]))
    except BaseException:
      traceback.print_exc()
    finally:
      sys.stdout.flush()
      os._exit(ending.code)
  code, end = None, time.monotonic() + seconds
  while code is None and time.monotonic() < end:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
      code = os.waitstatus_to_exitcode(status)
    else:
      time.sleep(_POLL)
  with contextlib.suppress(ProcessLookupError):
    os.killpg(child, signal.SIGKILL)
  if code is None:
    os.waitpid(child, 0)
  return code


if __name__ == '__main__':
  main()
