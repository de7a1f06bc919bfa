"""A command that is told to stop, wherever it is."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conic_jax.ending import STOP_SIGNALS, end_while_starting, stopped_by_signals
from conic_jax.errors import Stopped

PROGRAM = """
import sys, time
from conic_jax.command_line import guarded
from conic_jax.errors import UserError
def action():
  try:
    print('ready', flush=True)
    time.sleep(30)
  except BaseException:
    if sys.argv[1] == 'import':
      raise ImportError('Encountered an error while initializing the extension.')
    raise
guarded(action)
"""


# In the background a shell lets children ignore SIGINT, and nohup SIGHUP.
HEED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""


def start(*arguments, program=PROGRAM):
  process = subprocess.Popen([sys.executable, '-c', HEED + program, *arguments], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
  assert process.stdout.readline() == 'ready\n'
  return process


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize('how', ['plainly', 'import'])
def test_a_signal_is_answered_by_one_line_wherever_it_comes(number, how):
  process = start(how)
  process.send_signal(number)
  _, errors = process.communicate(timeout=20)
  assert process.returncode == 128 + number
  assert len(errors.splitlines()) == 1
  assert errors.startswith('conic_jax: interrupted' if how == 'plainly' and number == signal.SIGINT
                           else f'conic_jax: {number.name}: stopped')


@pytest.mark.slow
def test_an_error_without_a_signal_keeps_its_traceback():
  process = start('', program=PROGRAM.replace('time.sleep(30)', "raise ImportError('broken')"))
  _, errors = process.communicate(timeout=20)
  assert process.returncode == 1
  assert errors.endswith('ImportError: broken\n')


@pytest.mark.slow
def test_what_is_ignored_stays_ignored():
  before = 'import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n'
  process = start('plainly', program=before + PROGRAM)
  os.kill(process.pid, signal.SIGHUP)
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(timeout=1)
  process.kill()
  process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_command_is_imported_is_one_line_too(number):
  begin = "from conic_jax import ending; ending.end_while_starting(); print('ready', flush=True)"
  process = start(program=f'{begin}\nimport jax, time; time.sleep(30)')
  process.send_signal(number)
  _, errors = process.communicate(timeout=20)
  assert process.returncode == 128 + number
  assert errors == f'conic_jax: {number.name}: stopped before anything began.\n'


def test_a_command_takes_over_from_its_start():
  before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
  try:
    for number in STOP_SIGNALS:
      signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    end_while_starting()
    with stopped_by_signals():
      assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
      with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
