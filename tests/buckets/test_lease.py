"""One command at a time in a folder of a bucket."""
import json
import os
import time
from pathlib import Path

import pytest
from etils import epath

from conic_jax.buckets.lease import NAME, Lease
from conic_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
  """A folder of this machine, used as one of a bucket is."""
  return epath.Path(tmp_path)


def held_elsewhere(folder, **holder):
  (Path(folder) / NAME).write_text(json.dumps({'id': 'theirs', 'host': 'elsewhere', 'process': 1,
                                               'since': 'today', 'beats': 1, **holder}))


def test_a_lease_says_who_has_the_folder_and_ends_with_it(folder):
  lease = Lease(folder, 'config.run', print)
  assert json.loads((folder / NAME).read_text())['process'] == os.getpid()
  lease.close()
  assert not (folder / NAME).exists()


def test_two_commands_of_one_machine_do_not_share_a_folder(folder):
  said = []
  lease = Lease(folder, 'config.run', print, beat=0.05)
  with pytest.raises(UserError, match=f'in use by process {os.getpid()} on .*: wait until it ends'):
    Lease(folder, 'config.run', said.append, gone=5.0)
  assert 'waiting 5 seconds for a sign of life' in said[0]
  lease.close()


def test_a_command_of_another_machine_that_beats_keeps_the_folder(folder, monkeypatch):
  held_elsewhere(folder)
  monkeypatch.setattr(time, 'sleep', lambda seconds: held_elsewhere(folder, beats=2))
  with pytest.raises(UserError, match='in use by process 1 on elsewhere since today'):
    Lease(folder, 'config.run', print, gone=5.0)


def test_a_command_of_another_machine_without_a_beat_loses_the_folder(folder):
  held_elsewhere(folder)
  lease = Lease(folder, 'config.run', print, gone=0.2)
  assert json.loads((folder / NAME).read_text())['process'] == os.getpid()
  lease.close()


def test_nobody_waits_for_a_process_of_this_machine_that_has_ended(folder):
  held_elsewhere(folder, host=os.uname().nodename, process=2**22 + 1)
  start = time.monotonic()
  Lease(folder, 'config.run', print, gone=60.0).close()
  assert time.monotonic() - start < 30


def test_a_command_that_was_stopped_for_long_learns_that_another_took_over(folder):
  lease = Lease(folder, 'config.run', print, beat=0.05)
  held_elsewhere(folder)
  end = time.monotonic() + 30
  while lease.lost is None and time.monotonic() < end:
    time.sleep(0.01)
  assert lease.lost == f'{folder} was taken over by process 1 on elsewhere since today'
  lease.close()
  assert json.loads((folder / NAME).read_text())['id'] == 'theirs'


def test_a_damaged_lease_is_taken_over(folder):
  (folder / NAME).write_text('{')
  Lease(folder, 'config.run', print).close()
