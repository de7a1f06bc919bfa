"""The copies in a bucket, here a folder: a lost disk and another number of processes cost nothing."""
import functools
import shutil

import numpy as np
import pytest
from etils import epath
from shares import DEPENDS_ON, Processes, check_each, held_at, rows_of, settings_of

from conic_jax.errors import UserError
from conic_jax.memories import copied_folder, sealed
from conic_jax.memories.copied_folder import CopiedFolder

KINDS = pytest.mark.parametrize('kind', ['host', 'disk'])


@pytest.fixture(autouse=True)
def small_objects(monkeypatch):
  """Of three rows."""
  monkeypatch.setattr(copied_folder, '_SEGMENT', 3 * 40)


def start(kind, folder, count, step=None, depends_on=DEPENDS_ON):
  """Each process has a folder of its own."""
  def make(layout):
    settings = settings_of(folder / f'disk-{layout.process_index}', epath.Path(folder / 'bucket'))
    return CopiedFolder(settings, kind, layout, depends_on)
  return Processes(make, count, step)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """Gives a folder the checkpoints of two processes at 4, 6 and 8, and a step after the last."""
  @functools.cache
  def once(kind):
    folder = tmp_path_factory.mktemp(kind)
    processes = start(kind, folder, 2)
    for step in (4, 6, 8):
      processes.advance(step)
      assert processes.checkpoint([kept for kept in (4, 6) if kept < step]) == [None, None]
    processes.advance(9)
    processes.close()
    return folder
  return lambda kind, folder: shutil.copytree(once(kind), folder, dirs_exist_ok=True)


def content(folder):
  return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@KINDS
@pytest.mark.parametrize('step', [4, 6, 8])
@pytest.mark.parametrize('lost', [(), (0,), (1,), (0, 1)])
def test_lost_disks_cost_the_steps_since_the_checkpoint(prepared, kind, step, lost, tmp_path):
  prepared(kind, tmp_path)
  before = content(tmp_path / 'bucket')
  for index in lost:
    shutil.rmtree(tmp_path / f'disk-{index}')
  processes = start(kind, tmp_path, 2, step)
  processes.check(step)
  assert content(tmp_path / 'bucket') == before
  processes.advance(10)
  processes.check(10)
  assert processes.checkpoint([step]) == [None, None]
  processes.close()
  check_each(lambda kept: start(kind, tmp_path, 2, kept), (10, step))


@KINDS
def test_any_number_of_processes_goes_on_whatever_lies_on_their_disks(kind, tmp_path):
  processes, step = start(kind, tmp_path, 1), 0
  for count in (2, 4, 40, 3, 1):
    processes.advance(step + 5)
    assert set(processes.checkpoint([step] if step else [])) == {None}
    processes.advance(step + 7)
    processes.close()
    step += 5
    if count == 4:
      (tmp_path / 'disk-0').rename(tmp_path / 'disk')
      (tmp_path / 'disk-1').rename(tmp_path / 'disk-0')
      (tmp_path / 'disk').rename(tmp_path / 'disk-1')
    processes = start(kind, tmp_path, count, step)
    processes.check(step)
  processes.close()


@KINDS
def test_machines_that_changed_places_fetch_their_rows(prepared, kind, tmp_path):
  prepared(kind, tmp_path)
  for old, new in ((0, 2), (1, 0), (2, 1)):
    (tmp_path / f'disk-{old}').rename(tmp_path / f'disk-{new}')
  processes = start(kind, tmp_path, 2, 8)
  processes.check(8)
  processes.close()


@KINDS
def test_only_what_changed_is_copied_and_only_what_is_needed_stays(kind, tmp_path):
  processes = start(kind, tmp_path, 1)
  processes.advance(6)
  processes.checkpoint()
  own = tmp_path / 'bucket' / 'process-0-of-1'
  objects = lambda step: {path.name for path in own.glob(f'rows-*-{step}')}
  assert objects(6) == {f'rows-{index}-6' for index in {id // 3 for id in held_at(6)}}
  processes.stores[0].write(np.array([7]), rows_of([7], 6), np.array([6]))
  processes.rates[0].append(0.6)
  processes.step = 7
  processes.checkpoint([6])
  assert objects(7) == {'rows-2-7'}
  assert (own / 'rows-2-6').exists()
  processes.close()
  processes = start(kind, tmp_path, 1, 7)
  processes.step = 8
  processes.checkpoint([7])
  assert objects(8) == set()
  assert not (own / 'rows-2-6').exists()
  assert {path.name for path in own.iterdir() if 'rows' not in path.name} == {
    '7.json', '8.json', 'rates-7', 'rates-8'}
  processes.close()


@KINDS
def test_copies_of_another_number_of_processes_go_with_their_checkpoints(prepared, kind, tmp_path):
  prepared(kind, tmp_path)
  processes = start(kind, tmp_path, 3, 8)
  of_two = lambda: {path.name for path in (tmp_path / 'bucket' / 'process-1-of-2').iterdir()}
  processes.advance(10)
  processes.checkpoint([8])
  assert '8.json' in of_two()
  assert '6.json' not in of_two()
  processes.advance(12)
  processes.checkpoint([10])
  assert of_two() == set()
  processes.close()


@KINDS
def test_a_save_that_was_given_up_is_not_taken_for_a_later_one(prepared, kind, tmp_path):
  """Both disks hold step 12 of a state that was not saved; one machine goes on alone to another step 12."""
  prepared(kind, tmp_path)
  processes = start(kind, tmp_path, 2, 8)
  processes.advance(11)
  processes.stores[0].write(np.array([0]), np.full((1, 2, 3), -1, np.float32), np.array([11]))
  processes.stores[1].write(np.array([36]), np.full((1, 2, 3), -1, np.float32), np.array([11]))
  processes.step = 12
  for rates in processes.rates:
    rates.append(1.1)
  processes.checkpoint([6, 8])
  processes.close()
  for index in (0, 1):
    shutil.copytree(tmp_path / f'disk-{index}', tmp_path / f'kept-{index}')
  processes = start(kind, tmp_path, 1, 8)
  processes.advance(12)
  processes.checkpoint([6, 8])
  processes.close()
  for index in (0, 1):
    shutil.rmtree(tmp_path / f'disk-{index}', ignore_errors=True)
    shutil.move(tmp_path / f'kept-{index}', tmp_path / f'disk-{index}')
  processes = start(kind, tmp_path, 2, 12)
  processes.check(12)
  processes.close()


class Refusing:
  """A bucket whose writes fail at one moment."""

  def __init__(self, monkeypatch):
    self.monkeypatch, self.real = monkeypatch, copied_folder._put

  def after(self, count):
    def put(folder, name, content):
      nonlocal count
      count -= 1
      if count < 0:
        raise ConnectionError('the network is gone\nfor now')
      return self.real(folder, name, content)
    self.monkeypatch.setattr(copied_folder, '_put', put)


@KINDS
@pytest.mark.parametrize('after', [0, 1, 5])
def test_a_copy_that_fails_costs_only_itself(prepared, kind, after, tmp_path, monkeypatch):
  prepared(kind, tmp_path)
  processes, bucket = start(kind, tmp_path, 2, 8), Refusing(monkeypatch)
  processes.advance(10)
  bucket.after(after)
  problems = processes.checkpoint([6, 8])
  assert problems[-1] == f'{tmp_path}/bucket could not be written (the network is gone)'
  bucket.after(10**9)
  processes.advance(12)
  assert processes.checkpoint([6, 8]) == [None, None]
  processes.close()
  for index in (0, 1):
    shutil.rmtree(tmp_path / f'disk-{index}')
  for step in (12, 8, 6):
    processes = start(kind, tmp_path, 3, step)
    processes.check(step)
    processes.close()
  with pytest.raises(UserError, match='holds no whole copy of the rows of step 10: move checkpoint 10 out'):
    start(kind, tmp_path, 2, 10)


@KINDS
def test_a_damaged_store_is_fetched_again(prepared, kind, tmp_path):
  prepared(kind, tmp_path)
  for path in (tmp_path / 'disk-0' / 'process-0').iterdir():
    path.write_bytes(path.read_bytes()[:-1])
  processes = start(kind, tmp_path, 2, 8)
  processes.check(8)
  processes.close()


def test_a_damaged_row_is_told_and_fetched_by_the_next_start(prepared, tmp_path):
  prepared('disk', tmp_path)
  path = tmp_path / 'disk-0' / 'process-0' / 'rows'
  data = bytearray(path.read_bytes())
  id = min(held_at(8))
  data[36 * id + 20] ^= 1
  path.write_bytes(data)
  processes = start('disk', tmp_path, 2, 8)
  with pytest.raises(UserError, match=(
      rf'process-0/rows or its checksums are damaged at instance {id}: run the same command again, which '
      r'fetches the rows from .*bucket\.')):
    processes.check(8)
  processes.close()
  processes = start('disk', tmp_path, 2, 8)
  processes.check(8)
  processes.close()


@KINDS
@pytest.mark.parametrize('pattern', ['8.json', 'rows-*', 'rates-8'])
@pytest.mark.parametrize('change', ['flip', 'cut', 'delete'])
def test_a_damaged_copy_is_told_where_it_is_needed(prepared, kind, pattern, change, tmp_path):
  prepared(kind, tmp_path)
  own = tmp_path / 'bucket' / 'process-0-of-2'
  named = {name for name, *_ in sealed.read(own / '8.json')['objects'].values()}
  path = next(path for path in sorted(own.glob(pattern)) if pattern != 'rows-*' or path.name in named)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  if change == 'delete':
    path.unlink()
  else:
    path.write_bytes(data if change == 'flip' else data[:-1])
  shutil.rmtree(tmp_path / 'disk-0')
  with pytest.raises(UserError, match=rf'{tmp_path}/bucket.*(8\.json is damaged|{path.name}|of step 8)'):
    start(kind, tmp_path, 2, 8).close()
  processes = start(kind, tmp_path, 2, 6) if pattern != 'rows-*' else None
  if processes:
    processes.check(6)
    processes.close()


@KINDS
def test_a_bucket_of_another_run_is_refused(prepared, kind, tmp_path):
  with pytest.raises(UserError, match='bucket holds no rows, which the checkpoint needs'):
    start(kind, tmp_path, 1, 8)
  prepared(kind, tmp_path)
  with pytest.raises(UserError, match=r'config\.classifier\.norm was 1\.0, is 2\.0'):
    start(kind, tmp_path, 2, 8, {'norm': 2.0})
  for path in (tmp_path / 'bucket').glob('process-*/8.json'):
    path.write_bytes(sealed.encoded({**sealed.read(path), 'seed': 6}))
  with pytest.raises(UserError, match=r'8\.json is of another run: seed was 6, is 5'):
    start(kind, tmp_path, 2, 8)


def test_a_run_that_begins_anew_clears_the_bucket(prepared, tmp_path):
  prepared('disk', tmp_path)
  start('disk', tmp_path, 1).close()
  assert set(map(str, content(tmp_path / 'bucket'))) == {'settings.json'}
