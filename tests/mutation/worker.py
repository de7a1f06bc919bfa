"""Runs tests of a copy of the checkout with one fault after another.

Each line that it reads is a job: a file, its text, the tests, and the seconds that these may take. It imports
what takes long once, and forks for every job: what a fault breaks goes with the child.
"""
import json
import os
import signal
import sys
import time
from pathlib import Path

import flax.linen  # noqa: F401
import hypothesis  # noqa: F401
import jax  # noqa: F401
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401
import pytest
import tensorflow  # noqa: F401

_POLL = 0.05


def main() -> None:
  """Answers each job with a line: what pytest exited with, None where time was over, and the seconds."""
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
  """What pytest exits with; None where it took longer."""
  child = os.fork()
  if child == 0:
    os.setsid()
    log = os.open('mutation.log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 70
    try:
      code = int(pytest.main(['-x', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', *tests]))
    finally:
      os._exit(code)
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
      return os.waitstatus_to_exitcode(status)
    time.sleep(_POLL)
  os.killpg(child, signal.SIGKILL)
  os.waitpid(child, 0)
  return None


if __name__ == '__main__':
  main()
