"""Steps that hang, and what is no step."""
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conic_jax.ending import LOST
from conic_jax.hardware.watchdog import stepping, watched

HUNG_AFTER = 0.4


@pytest.fixture
def hangs():
  """What the watchdog told of, while it watches."""
  told = []
  with watched(HUNG_AFTER, told.append):
    yield told


def test_a_step_that_does_not_end_is_told_of_once(hangs):
  with stepping() as watchdog:
    watchdog.feed()
    time.sleep(3 * HUNG_AFTER)
  assert hangs == [HUNG_AFTER]


@pytest.mark.slow
def test_steps_that_end_and_what_lies_between_do_not_count(hangs):
  with stepping() as watchdog:
    time.sleep(2 * HUNG_AFTER)
    for _ in range(20):
      watchdog.feed()
      time.sleep(HUNG_AFTER / 10)
    watchdog.pause()
    time.sleep(2 * HUNG_AFTER)
    watchdog.feed()
  time.sleep(2 * HUNG_AFTER)
  assert hangs == []


@pytest.mark.parametrize('seconds', [0, HUNG_AFTER])
def test_without_a_watchdog_steps_may_take_any_time(seconds):
  told = []
  with watched(0, told.append), stepping() as watchdog:
    watchdog.feed()
    time.sleep(2 * seconds)
  assert told == []


HANGS = """
import functools, sys, time
from conic_jax.ending import end_hung
from conic_jax.hardware.watchdog import stepping, watched
def hang():
  print('ready', flush=True)
  time.sleep(60)
with watched(float(sys.argv[1]), functools.partial(end_hung, last_checkpoint=lambda: sys.argv[2])):
  with stepping() as watchdog:
    watchdog.feed()
    hang()
"""


def start(*arguments):
  process = subprocess.Popen([sys.executable, '-c', HANGS, *arguments], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
  assert process.stdout.readline() == 'ready\n'
  return process


@pytest.mark.slow
def test_a_process_that_hangs_shows_its_stacks_and_ends():
  _, errors = (process := start('0.5', 'run/checkpoints/7')).communicate(timeout=30)
  assert process.returncode == LOST
  *stacks, line = errors.splitlines()
  assert any(', line 7 in hang' in frame for frame in stacks), errors
  assert line == ('conic_jax: A step did not end within 0.5 s; the stacks above say where it hangs. The last '
                  'good checkpoint is run/checkpoints/7. Start the same command again to go on.')


@pytest.mark.slow
def test_a_process_that_was_stopped_does_not_hang():
  process = start('4', '')
  process.send_signal(signal.SIGSTOP)
  time.sleep(6)
  process.send_signal(signal.SIGCONT)
  time.sleep(1)
  assert process.poll() is None
  process.kill()
  process.communicate()
