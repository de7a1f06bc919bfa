"""A run's folder: whose it is, who holds it, and what it may be."""
import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from conic_jax.errors import UserError
from conic_jax.run import claim as claims

HOLD = '''
import sys, time
from pathlib import Path
from conic_jax.run.claim import claim_folder
claimed = claim_folder(Path(sys.argv[1]), 'config.run', print)
(Path(sys.argv[1]) / 'made').touch()
print('held', flush=True)
time.sleep(600)
'''


def claim(folder, said=None):
  return claims.claim_folder(folder, 'config.run', (said if said is not None else []).append)


@pytest.mark.parametrize('exists', [False, True], ids=['new', 'empty'])
def test_a_new_folder_is_marked_and_gone_if_nothing_was_made(tmp_path, exists):
  run = tmp_path / 'deep' / 'run'
  if exists:
    run.mkdir(parents=True)
  claimed = claim(run)
  assert json.loads((run / claims.MARKER).read_text())['format'] == claims.FORMAT
  claimed.close()
  assert not run.exists()


def test_what_a_run_made_stays_and_goes_on(tmp_path):
  claimed = claim(tmp_path / 'run')
  (tmp_path / 'run' / 'metrics.jsonl').write_text('')
  claimed.close()
  assert (tmp_path / 'run' / claims.MARKER).is_file()
  claim(tmp_path / 'run').close()
  assert (tmp_path / 'run' / 'metrics.jsonl').is_file()


@pytest.mark.parametrize('files', [
  {'config.json': '{"model_type": "resnet"}', 'store/data': 'mine'},
  {'config.json': '[1]'}, {'config.json': 'no json'}, {'photo.png': ''}, {'.hidden': ''},
  {'checkpoints/1/x': ''}])
def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path, files):
  for name, content in files.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)
  with pytest.raises(UserError, match=rf"config\.run is '{tmp_path}', which is no run and holds .*: give"):
    claim(tmp_path)
  assert {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob('*') if path.is_file()
          } == files


@pytest.mark.parametrize('files', [
  {'config.json': '{"method": "conic", "encoder": {}, "views": {}}'},
  {'config.json': 'half', 'metrics.jsonl': '', 'checkpoints/1/x': ''}])
def test_runs_without_a_marker_go_on(tmp_path, files):
  for name, content in files.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)
  claim(tmp_path).close()
  assert (tmp_path / claims.MARKER).is_file()


@pytest.mark.parametrize(('content', 'opens'), [
  ('{"format": 1}', True), ('', True), ('[]', True), ('{"format": 99}', False)])
def test_the_marker_of_a_newer_version_is_refused(tmp_path, content, opens):
  (tmp_path / claims.MARKER).write_text(content)
  (tmp_path / 'metrics.jsonl').touch()
  if opens:
    claim(tmp_path).close()
  else:
    with pytest.raises(UserError, match=r'has format 99; conic_jax .* knows formats up to 1: use the newer'):
      claim(tmp_path)


def test_the_second_start_in_one_process_is_refused(tmp_path):
  claimed = claim(tmp_path / 'run')
  with pytest.raises(UserError, match=rf'in use by process {os.getpid()} on .+ since \d{{4}}-.*: wait until'):
    claim(tmp_path / 'run')
  claimed.close()
  claim(tmp_path / 'run').close()


@pytest.mark.slow
def test_a_lock_dies_with_its_process(tmp_path):
  with subprocess.Popen([sys.executable, '-c', HOLD, tmp_path / 'run'], stdout=subprocess.PIPE, text=True
                        ) as holder:
    assert holder.stdout.readline() == 'held\n'
    with pytest.raises(UserError, match=f'in use by process {holder.pid} on'):
      claim(tmp_path / 'run')
    holder.send_signal(signal.SIGKILL)
    holder.wait()
  claim(tmp_path / 'run').close()


def try_claim(folder, barrier, outcomes):
  barrier.wait()
  try:
    claimed = claim(folder)
    (folder / 'made').touch()
    outcomes.put('held')
  except UserError:
    claimed = None
    outcomes.put('refused')
  barrier.wait()
  del claimed


@pytest.mark.slow
def test_of_many_starts_at_once_one_holds_it(tmp_path):
  context = multiprocessing.get_context('spawn')
  barrier, outcomes = context.Barrier(4), context.Queue()
  processes = [context.Process(target=try_claim, args=(tmp_path / 'run', barrier, outcomes))
               for _ in range(4)]
  for process in processes:
    process.start()
  found = sorted(outcomes.get(timeout=120) for _ in processes)
  for process in processes:
    process.join()
  assert found == ['held', 'refused', 'refused', 'refused']


@pytest.mark.parametrize('name', ['file', 'file/below', 'x' * 300])
def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, name):
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match=r"config\.run is '.*', which cannot be written \(.+\): free room"):
    claim(tmp_path / name)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(claims.errno.ENOLCK, 'No locks available')
  monkeypatch.setattr(claims.fcntl, 'flock', refuse)
  said = []
  claim(tmp_path / 'run', said).close()
  assert said == [f'{tmp_path}/run is on a file system without locks: make sure that no other command writes '
                  'to this run.']
