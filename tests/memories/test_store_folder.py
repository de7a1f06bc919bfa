"""A store in a folder that all processes share goes on with any number of them."""
import numpy as np
import pytest
from old_store import as_version_1
from shares import DEPENDS_ON, N, Processes, check_each, settings_of
from test_store_crash import Died, Machine

from conic_jax.errors import UserError
from conic_jax.memories.row_store import Layout
from conic_jax.memories.store_folder import StoreFolder

KINDS = pytest.mark.parametrize('kind', ['host', 'disk'])


class RemovingMachine(Machine):
  """Files may be named within their folder, as `shutil.rmtree` does."""

  def unlink(self, path, dir_fd=None):
    if dir_fd is None:
      super().unlink(path)
    elif self.dies():
      raise Died
    else:
      self.real['unlink'](path, dir_fd=dir_fd)


def start(kind, folder, count, step=None):
  make = lambda layout: StoreFolder(settings_of(folder), kind, layout, DEPENDS_ON)
  return Processes(make, count, step)


def prepared(kind, folder, count=2):
  """Checkpoints at 4, 6 and 8, and a step after the last."""
  processes = start(kind, folder, count)
  for step in (4, 6, 8):
    processes.advance(step)
    processes.checkpoint([kept for kept in (4, 6) if kept < step])
  processes.advance(9)
  processes.close()


def names(folder):
  return sorted(path.name for path in folder.glob('process-*'))


@KINDS
def test_any_number_of_processes_goes_on(kind, tmp_path):
  processes, step = start(kind, tmp_path, 1), 0
  for count in (2, 4, 40, 3, 1):
    processes.advance(step + 5)
    processes.checkpoint([step] if step else [])
    processes.advance(step + 7)  # Lost: the processes are killed.
    processes.close()
    step += 5
    processes = start(kind, tmp_path, count, step)
    processes.check(step)
  processes.close()


@KINDS
@pytest.mark.parametrize('step', [4, 6, 8])
def test_every_checkpoint_that_is_kept_can_be_divided_anew(kind, step, tmp_path):
  prepared(kind, tmp_path)
  processes = start(kind, tmp_path, 3, step)
  processes.check(step)
  processes.advance(10)
  processes.check(10)
  processes.checkpoint([step])
  processes.close()
  check_each(lambda kept: start(kind, tmp_path, 3, kept), (10, step))


@KINDS
def test_the_old_folders_stay_until_their_checkpoints_are_gone(kind, tmp_path):
  prepared(kind, tmp_path)
  old = ['process-0', 'process-1']
  new = [f'process-{index}-of-3-from-8' for index in range(3)]
  processes = start(kind, tmp_path, 3, 8)
  for kept, expected in (([6, 8], old + new), ([8], new)):
    processes.advance(processes.step + 1)
    processes.checkpoint(kept)
    assert names(tmp_path) == sorted(expected)
  processes.close()


@KINDS
@pytest.mark.parametrize('count', [1, 2, 3])
def test_an_older_checkpoint_is_gone_back_to_after_the_division(kind, count, tmp_path):
  """With the old number of processes, the new one, and another."""
  prepared(kind, tmp_path)
  processes = start(kind, tmp_path, 3, 8)
  processes.advance(12)
  processes.checkpoint([6, 8])
  processes.close()
  processes = start(kind, tmp_path, count, 6)
  processes.check(6)
  processes.advance(12)
  processes.checkpoint([6])
  processes.check(12)
  assert not any('from-8' in name for name in names(tmp_path))
  processes.close()


@KINDS
def test_steps_that_were_given_up_are_not_taken_for_later_ones(kind, tmp_path):
  """Two processes come to step 12, whose state is not saved; one goes on from step 8, and two again."""
  prepared(kind, tmp_path)
  processes = start(kind, tmp_path, 2, 8)
  processes.advance(11)
  ids = np.array([0, N - 1])
  for store, id in zip(processes.stores, ids, strict=True):
    store.write(np.array([id]), np.full((1, 2, 3), -1, np.float32), np.array([11]))
  processes.step = 12
  processes.checkpoint([6, 8])
  processes.close()
  processes = start(kind, tmp_path, 1, 8)
  processes.advance(12)
  processes.checkpoint([6, 8])
  processes.close()
  processes = start(kind, tmp_path, 2, 12)
  processes.check(12)
  processes.close()


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize('power', [False, True], ids=['killed', 'power lost'])
def test_a_division_may_be_interrupted_anywhere(kind, power, tmp_path, monkeypatch):
  """The old folders stay whole, for the old number of processes, the new one, and another."""
  calls, lived = 0, False
  while not lived:
    folder = tmp_path / str(calls)
    machine = Machine(np.random.default_rng(calls), monkeypatch)
    prepared(kind, folder)
    lived = machine.run(lambda folder=folder: start(kind, folder, 3, 8).close(), calls)
    if power:
      for part in folder.glob('process-*'):
        machine.lose_power(part)
    processes = start(kind, folder, (3, 2, 1)[calls % 3], 8)
    processes.check(8)
    processes.close()
    calls += 7 if calls > 20 else 1
  assert calls > 20


@KINDS
def test_the_removal_of_old_folders_may_be_interrupted_anywhere(kind, tmp_path, monkeypatch):
  calls, lived = 0, False
  while not lived:
    folder = tmp_path / str(calls)
    machine = RemovingMachine(np.random.default_rng(calls), monkeypatch)
    prepared(kind, folder)
    processes = start(kind, folder, 3, 8)
    processes.advance(10)
    for store in processes.stores:
      store.checkpoint(10, [8])
    lived = machine.run(lambda processes=processes: processes.folders[0].sync(10, [8]), calls)
    processes.close()
    processes = start(kind, folder, 2, 8)
    processes.check(8)
    processes.close()
    calls += 1
  assert calls > 2


@KINDS
def test_damage_of_the_old_folders_is_told_and_nothing_is_lost(kind, tmp_path):
  prepared(kind, tmp_path)
  path = tmp_path / 'process-1' / {'host': 'host-8', 'disk': 'rows'}[kind]
  data = bytearray(path.read_bytes())
  data[-7] ^= 1
  path.write_bytes(data)
  before = {path: path.read_bytes() for path in tmp_path.glob('process-?/*')}
  with pytest.raises(UserError, match=r'process-1/.* damaged at'):
    start(kind, tmp_path, 3, 8)
  assert {path: path.read_bytes() for path in tmp_path.glob('process-?/*')} == before


@KINDS
def test_a_folder_that_is_missing_is_told(kind, tmp_path):
  prepared(kind, tmp_path)
  (tmp_path / 'process-1' / 'store.json').unlink()
  with pytest.raises(UserError, match=r'process-1/store\.json is missing, .* needs its rows: bring'):
    start(kind, tmp_path, 3, 8)
  with pytest.raises(UserError, match='process-1 holds no store'):
    start(kind, tmp_path, 2, 8)


@KINDS
def test_a_step_that_was_not_kept_is_told(kind, tmp_path):
  prepared(kind, tmp_path)
  with pytest.raises(UserError, match=r'process-0 was not kept for step 7, only for 4, 6, 8'):
    start(kind, tmp_path, 3, 7)


def test_damaged_rates_are_told_before_the_division(tmp_path):
  prepared('disk', tmp_path)
  data = bytearray((tmp_path / 'rates-0').read_bytes())
  data[9] ^= 1
  (tmp_path / 'rates-0').write_bytes(data)
  with pytest.raises(UserError, match='rates-0 or its checksums are damaged at step 2'):
    start('disk', tmp_path, 3, 8)
  assert names(tmp_path) == ['process-0', 'process-1']


@KINDS
def test_a_disk_without_room_for_both_is_told(kind, tmp_path, monkeypatch):
  prepared(kind, tmp_path)
  monkeypatch.setattr('shutil.disk_usage', lambda path: type('Usage', (), {'free': -10**5}))
  with pytest.raises(UserError, match=r'needs .* free room'):
    start(kind, tmp_path, 3, 8)
  assert names(tmp_path) == ['process-0', 'process-1']


@KINDS
def test_a_store_of_version_1_is_brought_up_to_date_before_it_is_divided(kind, tmp_path):
  prepared(kind, tmp_path)
  processes = start(kind, tmp_path, 2, 8)
  processes.close()
  for store in processes.stores:
    as_version_1(store)
  if kind == 'disk':
    with pytest.raises(UserError, match=r'process-0 is a store of version 1: .* with the 2 processes'):
      start(kind, tmp_path, 3, 8)
    start(kind, tmp_path, 2, 8).close()
  processes = start(kind, tmp_path, 3, 8)
  processes.check(8)
  processes.close()


def test_the_folder_of_a_process_says_who_and_since_when():
  assert Layout(N, 3, 5, 2, 4).name == 'process-2'
  assert Layout(N, 3, 5, 2, 4, begun=0).name == 'process-2-of-4-from-0'
