"""The contract of the stores: rows come back as they were written, bad input is told."""
import collections
import json
import os
import resource
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from conic_jax.errors import UserError
from conic_jax.memories import journal
from conic_jax.memories.store import Layout, open_store, shortage

LAYOUT = Layout(num_instances=37, dim=3, seed=5)
KINDS = pytest.mark.parametrize('kind', ['host', 'disk'])
EVERYTHING = np.arange(37)


def rows_of(ids, step=0):
  """Rows that differ in every entry, id and step."""
  start = 1000 * step + np.asarray(ids)
  return (start[:, None, None] + np.arange(6).reshape(2, 3) / 8).astype(np.float32)


def write(store, ids, step):
  store.write(np.array(ids), rows_of(ids, step), np.full(len(ids), step))


def assert_holds(store, expected, layout=LAYOUT):
  """The store has these {id: step of the last write} and no more."""
  rows, seen, written = store.read(np.array(layout.ids))
  assert (rows.dtype, seen.dtype, written.dtype) == (np.float32, np.int64, np.bool_)
  np.testing.assert_array_equal(written, [id in expected for id in layout.ids])
  np.testing.assert_array_equal(seen, [expected.get(id, 0) for id in layout.ids])
  theirs = [rows_of([id], expected[id])[0] if id in expected else np.zeros((2, 3)) for id in layout.ids]
  np.testing.assert_array_equal(rows, np.reshape(theirs, rows.shape))


@KINDS
def test_rows_come_back_as_written_and_the_rest_as_never_written(kind, tmp_path):
  store = open_store(kind, tmp_path, LAYOUT)
  assert_holds(store, {})
  write(store, [36, 0, 7], 0)
  write(store, [7, 8], 4)
  assert_holds(store, {36: 0, 0: 0, 7: 4, 8: 4})
  rows, _, _ = store.read(np.array([8, 36, 8]))
  np.testing.assert_array_equal(rows, np.concatenate([rows_of([8], 4), rows_of([36]), rows_of([8], 4)]))
  write(store, [], 5)
  assert store.read(np.zeros(0, np.int64)).rows.shape == (0, 2, 3)
  store.close()


@KINDS
def test_the_names_of_all_folders_that_are_made_are_brought_to_the_disk(kind, tmp_path, monkeypatch):
  """That of the run, which holds the store's, too."""
  synced, folder = [], tmp_path / 'run' / 'store'
  monkeypatch.setattr(journal, 'sync_folder', synced.append)
  open_store(kind, folder, LAYOUT).close()
  assert {folder / 'process-0', folder, folder.parent} <= set(synced)


@KINDS
@pytest.mark.parametrize('back_to', [2, 5, 9])
def test_every_checkpoint_kept_can_be_gone_back_to(kind, back_to, tmp_path):
  store, held, checkpoints = open_store(kind, tmp_path, LAYOUT), {}, {}
  rng = np.random.default_rng(0)
  for step in range(12):
    if step in (2, 5, 9):
      store.checkpoint(step, list(checkpoints))
      checkpoints[step] = dict(held)
    ids = rng.choice(37, 6, replace=False)
    write(store, ids, step)
    held |= dict.fromkeys(ids.tolist(), step)
  store.close()
  store = open_store(kind, tmp_path, LAYOUT, back_to)
  assert_holds(store, checkpoints[back_to])
  write(store, [1, 2], 20)
  store.checkpoint(21, [back_to])
  write(store, [2, 3], 22)
  store.close()
  store = open_store(kind, tmp_path, LAYOUT, 21)
  assert_holds(store, checkpoints[back_to] | {1: 20, 2: 20})
  store.close()
  store = open_store(kind, tmp_path, LAYOUT, back_to)
  assert_holds(store, checkpoints[back_to])
  store.close()


@KINDS
def test_checkpoints_that_are_not_kept_are_deleted(kind, tmp_path):
  store = open_store(kind, tmp_path, LAYOUT)
  for step, kept in ((3, []), (4, [3]), (5, [3, 4]), (6, [4, 5])):
    write(store, [step], step)
    store.checkpoint(step, kept)
  store.close()
  prefix = {'host': 'host-', 'disk': 'journal-'}[kind]
  names = {path.name for path in store.folder.iterdir() if path.name.startswith(prefix)}
  assert names == {f'{prefix}{step}' for step in (4, 5, 6)}
  with pytest.raises(UserError, match=r'not kept for step 3, only for 4, 5, 6'):
    open_store(kind, tmp_path, LAYOUT, 3)


@KINDS
def test_beginning_anew_forgets_all(kind, tmp_path):
  store = open_store(kind, tmp_path, Layout(50, 4, seed=1))
  store.write(np.array([40]), np.ones((1, 2, 4)), np.array([3]))
  store.checkpoint(9, [])
  store.close()
  store = open_store(kind, tmp_path, LAYOUT)
  assert_holds(store, {})
  store.close()
  with pytest.raises(UserError, match='not kept for step 9'):
    open_store(kind, tmp_path, LAYOUT, 9)


@KINDS
@pytest.mark.parametrize('count', [1, 3, 5, 40])
def test_processes_share_the_rows(kind, count, tmp_path):
  layouts = [Layout(37, 3, 5, index, count) for index in range(count)]
  assert [id for layout in layouts for id in layout.ids] == list(range(37))
  stores = [open_store(kind, tmp_path, layout) for layout in layouts]
  for layout, store in zip(layouts, stores, strict=True):
    write(store, list(layout.ids)[::2], 3)
    store.checkpoint(4, [])
    store.close()
  for layout in layouts:
    store = open_store(kind, tmp_path, layout, 4)
    assert_holds(store, dict.fromkeys(list(layout.ids)[::2], 3), layout)
    store.close()


@KINDS
@pytest.mark.parametrize('id', [-1, 12, 26, 37, 2**40])
def test_ids_of_no_row_are_refused(kind, id, tmp_path):
  store = open_store(kind, tmp_path, Layout(37, 3, 5, process_index=1, process_count=3))
  for use in (lambda: store.read(np.array([13, id, 99])), lambda: write(store, [13, id, 99], 0)):
    with pytest.raises(UserError, match=f'Instance {id} is none of the rows of process 1, 13 to 25'):
      use()
  assert not store.read(np.array([13])).written[0]
  store.close()


@KINDS
def test_the_store_of_another_run_is_refused_with_each_difference(kind, tmp_path):
  open_store(kind, tmp_path, LAYOUT).close()
  with pytest.raises(UserError) as error:
    open_store(kind, tmp_path, Layout(38, 4, seed=6, process_count=2), 0)
  for phrase in ('num_instances was 37, is 38', 'dim was 3, is 4', 'seed was 5, is 6',
                 'process_count was 1, is 2'):
    assert phrase in str(error.value)
  other = {'host': 'disk', 'disk': 'host'}[kind]
  with pytest.raises(UserError, match=f"kind was '{kind}', is '{other}'"):
    open_store(other, tmp_path, LAYOUT, 0)
  with pytest.raises(UserError, match='process-1 holds no store'):
    open_store(kind, tmp_path, Layout(37, 3, 5, process_index=1, process_count=2), 0)


def test_another_kind_is_refused(tmp_path):
  with pytest.raises(UserError, match="no store 'tape'; available: host, disk"):
    open_store('tape', tmp_path, LAYOUT)


@KINDS
def test_one_thread_may_write_while_another_reads_other_rows(kind, tmp_path):
  store, odd, even = open_store(kind, tmp_path, LAYOUT), EVERYTHING[1::2], EVERYTHING[::2]
  write(store, odd, 3)
  with ThreadPoolExecutor(1) as pool:
    writing = pool.submit(lambda: [write(store, even, step) for step in range(20)])
    while True:
      done = writing.done()
      rows, seen, _ = store.read(odd)
      np.testing.assert_array_equal(rows, rows_of(odd, 3))
      np.testing.assert_array_equal(seen, 3)
      if done:
        break
    writing.result()
  assert_holds(store, dict.fromkeys(odd, 3) | dict.fromkeys(even, 19))
  store.close()


def test_too_little_host_memory_is_told():
  with pytest.raises(UserError, match=f'need {10**15 * (8 + 8 * 128) / 2**30:,.1f} GiB of host memory'):
    open_store('host', Path('not made'), Layout(10**15, 128, seed=0))


def prepared(kind, tmp_path):
  """The folder of a store with a checkpoint at 1 and at 3, and a write after each."""
  store = open_store(kind, tmp_path, LAYOUT)
  for step in range(4):
    write(store, [10, 11 + step], step)
    if step in (0, 2):
      store.checkpoint(step + 1, [1])
  store.close()
  return store.folder


def flip(path, position):
  data = bytearray(path.read_bytes())
  data[position] ^= 16
  path.write_bytes(data)


@pytest.mark.parametrize(('kind', 'name', 'message'), [
  ('host', 'host-3', 'host-3 is damaged'), ('disk', 'journal-1', 'journal-1 is damaged')])
@pytest.mark.parametrize('position', [journal.BEGIN, journal.BEGIN + 30])
def test_a_damaged_file_is_told(kind, name, message, position, tmp_path):
  folder = prepared(kind, tmp_path)
  flip(folder / name, position)
  with pytest.raises(UserError, match=message):
    open_store(kind, tmp_path, LAYOUT, int(name[-1]))


@KINDS
def test_a_damaged_header_is_told(kind, tmp_path):
  folder = prepared(kind, tmp_path)
  (folder / 'store.json').write_text(json.dumps({})[:1])
  with pytest.raises(UserError, match=r'store\.json is damaged'):
    open_store(kind, tmp_path, LAYOUT, 3)


def test_a_dump_that_is_cut_short_is_told(tmp_path):
  path = prepared('host', tmp_path) / 'host-3'
  path.write_bytes(path.read_bytes()[:-16])  # The block that marks the end.
  with pytest.raises(UserError, match='host-3 is cut short'):
    open_store('host', tmp_path, LAYOUT, 3)


@pytest.mark.parametrize(('name', 'size'), [('rows', 37 * 36), ('rows.sums', 37 * 4)])
@pytest.mark.parametrize('change', [-1, 1, None])
def test_a_file_of_rows_of_the_wrong_size_is_told(name, size, change, tmp_path):
  path = prepared('disk', tmp_path) / name
  if change is None:
    path.unlink()
  else:
    os.truncate(path, path.stat().st_size + change)
  with pytest.raises(UserError, match=f'{name} has .* bytes where {size} were expected'):
    open_store('disk', tmp_path, LAYOUT, 3)


@pytest.mark.parametrize('id', [11, 20])  # Written before the checkpoints; never written.
def test_a_damaged_row_is_told_with_its_id(id, tmp_path):
  path = prepared('disk', tmp_path) / 'rows'
  for position in range(36):
    flip(path, 36 * id + position)
    store = open_store('disk', tmp_path, LAYOUT, 3)
    with pytest.raises(UserError, match=f'rows or its checksums are damaged at instance {id}: '):
      store.read(EVERYTHING)
    assert store.read(np.delete(EVERYTHING, id)).written.sum() == 4 - (id == 11)
    store.close()
    flip(path, 36 * id + position)


def test_a_row_in_the_place_of_another_is_told(tmp_path):
  path = prepared('disk', tmp_path) / 'rows'
  data = bytearray(path.read_bytes())
  data[36 * 9:36 * 10] = data[36 * 10:36 * 11]
  path.write_bytes(data)
  store = open_store('disk', tmp_path, LAYOUT, 3)
  with pytest.raises(UserError, match='are damaged at instance 9'):
    store.read(EVERYTHING)
  store.close()


def fill(store):
  for step in range(2, 12):
    write(store, [2, step, 30], step)
    store.checkpoint(step, [1])


@KINDS
@pytest.mark.parametrize('limit', [50, 400])
def test_a_full_disk_costs_nothing_that_was_saved(kind, limit, tmp_path):
  """The limit on the size of files stands for it: it strikes dump, journal or rows, early or late."""
  store = open_store(kind, tmp_path, LAYOUT)
  write(store, [1, 2], 0)
  store.checkpoint(1, [])
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
  try:
    with pytest.raises(UserError, match=r'could not be written \(File too large\)'):
      fill(store)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  store.close()
  store = open_store(kind, tmp_path, LAYOUT, 1)
  assert_holds(store, {1: 0, 2: 0})
  assert not list(store.folder.glob('*.new'))
  store.close()


@KINDS
def test_a_disk_that_is_too_small_is_told_with_the_size_needed(kind, tmp_path, monkeypatch):
  layout, usage = Layout(10**8, 128, seed=0), collections.namedtuple('usage', 'total used free')
  arguments = {'layout': layout, 'rows_written': 10**6, 'rows_between_checkpoints': 10**5, 'keep': 2}
  for free, short in ((2**20, True), (2**50, False)):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path, free=free: usage(2**50, 0, free))
    message = shortage(tmp_path / 'new' / 'store', kind, **arguments)
    assert (message is not None) == short
    if short:
      assert 'store needs ' in message
      assert 'GiB for the rows' in message
      assert 'its disk has 1.0 MiB' in message


@KINDS
def test_a_disk_with_just_the_room_needed_will_do(kind, tmp_path, monkeypatch):
  usage, layout = collections.namedtuple('usage', 'total used free'), Layout(10**6, 1, seed=0)
  needed = {'disk': 88_000_000, 'host': 56_000_000}[kind]
  for missing in (0, 1):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path, free=needed - missing: usage(0, 0, free))
    assert bool(shortage(tmp_path, kind, layout, 10**6, 10**6, keep=1)) == bool(missing)


@pytest.mark.parametrize(('kind', 'needed'), [
  ('disk', 1e6 * (20 + 4 + 2 * 32)), ('host', 1e6 * 2 * 28)])  # Rows and two journals; two copies.
def test_of_small_rows_the_places_are_counted_too(kind, needed, tmp_path, monkeypatch):
  """A million rows of one dimension have 20 bytes each, 8 more in a copy; on disk each has a checksum too."""
  usage = collections.namedtuple('usage', 'total used free')
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(0, 0, 0))
  message = shortage(tmp_path, kind, Layout(10**6, 1, seed=0), 10**6, 10**6, keep=1)
  assert f' needs {needed / 2**20:,.1f} MiB ' in message


@KINDS
def test_the_size_needed_is_an_upper_bound_near_the_size_taken(kind, tmp_path, monkeypatch):
  """Two checkpoints kept and 6 a third of the run apart, all rows of a store visited at random."""
  layout, rng = Layout(600, 128, seed=0), np.random.default_rng(0)
  usage = collections.namedtuple('usage', 'total used free')
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(0, 0, 0))
  arguments = {'layout': layout, 'rows_written': 2400, 'rows_between_checkpoints': 400, 'keep': 2}
  message = shortage(tmp_path, kind, **arguments)
  needed = float(message.split(' needs ')[1].split(' MiB')[0]) * 2**20
  store, largest = open_store(kind, tmp_path, layout), 0
  for step in range(6):
    ids = rng.integers(0, 600, 400)
    ids = np.unique(ids)
    store.write(ids, np.ones((len(ids), 2, 128)), np.full(len(ids), step))
    largest = max(largest, sum(path.stat().st_blocks * 512 for path in store.folder.iterdir()))
    store.checkpoint(step + 1, [done for done in (step - 1, step) if done > 0])
    largest = max(largest, sum(path.stat().st_blocks * 512 for path in store.folder.iterdir()))
  store.close()
  assert largest <= needed + 5 * 4096 + 0.05 * 2**20  # Beside: whole pages, the header; rounding.
  assert largest >= 0.5 * needed
  assert 'has' in shortage(tmp_path, kind, **arguments)
