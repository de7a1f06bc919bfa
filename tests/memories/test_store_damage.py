"""Damage to any file of a store is told before a row of it is used, or changes no row."""
import functools
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from old_store import as_version_1

from conic_jax.errors import UserError
from conic_jax.memories import journal, sealed
from conic_jax.memories.store import Layout, open_store

LAYOUT = Layout(num_instances=150, dim=16, seed=5)  # 140 bytes a record: five pages and a part of one.
PAGE = 4096
EVERYTHING = np.arange(150)
KINDS = pytest.mark.parametrize('kind', ['host', 'disk'])
STEPS, NEVER = (3, 6, 9), 7  # The checkpoints; an id that is never written.
SHARED_FOLDER = settings(max_examples=25, deadline=None,
                         suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_of(ids, step):
  rng = np.random.default_rng([step, 1])
  return rng.standard_normal((150, 2, 16)).astype(np.float32)[ids]


def ids_of(step):
  rng = np.random.default_rng([step, 2])
  return np.setdiff1d(rng.choice(150, 40 if step else 110, replace=False), [NEVER])


def take(store, step):
  ids = ids_of(step)
  store.write(ids, rows_of(ids, step), np.full(len(ids), step))


@functools.cache
def expected_at(step):
  """(rows, seen, written) after this many steps."""
  rows, seen, written = np.zeros((150, 2, 16), np.float32), np.zeros(150, np.int64), np.zeros(150, bool)
  for done in range(step):
    ids = ids_of(done)
    rows[ids], seen[ids], written[ids] = rows_of(ids, done), done, True
  return rows, seen, written


def make(kind, folder):
  """A store with three checkpoints and two steps after the last, as a process leaves it that is killed."""
  store = open_store(kind, folder, LAYOUT)
  for step in range(11):
    if step in STEPS:
      store.checkpoint(step, [done for done in STEPS if done < step])
    take(store, step)
  store.close()
  return store.folder


@pytest.fixture(scope='module', params=['host', 'disk'])
def original(request, tmp_path_factory):
  return make(request.param, tmp_path_factory.mktemp(request.param))


def copy_of(original, folder):
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(original, folder / 'process-0')
  return folder / 'process-0'


def kind_of(folder):
  return 'disk' if (folder / 'rows').exists() or (folder / 'rows.sums').exists() else 'host'


def content(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def told_or_right(kind, folder, step):
  """How many times damage was told: at opening, before anything was changed, or for a row."""
  before = content(folder)
  try:
    store = open_store(kind, folder.parent, LAYOUT, step)
  except UserError as error:
    message, store = str(error), None
  if store is None:
    assert str(folder) in message
    assert content(folder) == before
    return 1
  told = []
  for id in EVERYTHING:
    try:
      stored = store.read(EVERYTHING[id:id + 1])
    except UserError as error:
      told.append((id, str(error)))
    else:
      for actual, expected in zip(stored, expected_at(step), strict=True):
        np.testing.assert_array_equal(actual[0], expected[id])
  store.close()
  assert all(f'rows or its checksums are damaged at instance {id}: ' in message for id, message in told)
  return len(told)


def flip_a_bit(data, rng):
  data = bytearray(data)
  data[rng.integers(len(data))] ^= 1 << rng.integers(8)
  return bytes(data)


def pages(data, rng):
  """The starts of all pages, of a size that the file has several of."""
  size = int(rng.choice([size for size in (64, 512, PAGE) if size <= max(64, len(data) // 2)]))
  return size, np.arange(0, len(data), size)


def zero_a_page(data, rng):
  size, starts = pages(data, rng)
  start = rng.choice(starts)
  page = data[start:start + size]
  return data[:start] + bytes(len(page)) + data[start + size:]


def swap_two_pages(data, rng):
  size, starts = pages(data, rng)
  whole = starts[:len(data) // size]
  one, other = sorted(rng.choice(whole, 2, replace=False)) if len(whole) > 1 else (0, 0)
  parts = data[:one], data[other:other + size], data[one + size:other], data[one:one + size]
  return b''.join(parts) + data[other + size:] if one != other else data


def copy_a_page(data, rng):
  """One page has the content of another."""
  size, starts = pages(data, rng)
  one, other = rng.choice(starts[:max(1, len(data) // size)], 2)
  return data[:one] + data[other:other + size] + data[one + size:]


def truncate(data, rng):
  return data[:rng.integers(len(data))]


def extend(data, rng):
  return data + (rng.bytes if rng.random() < 0.5 else bytes)(int(rng.choice([1, 20, 140, PAGE])))


CHANGES = [flip_a_bit, zero_a_page, swap_two_pages, copy_a_page, truncate, extend]


@pytest.mark.slow
@pytest.mark.parametrize('change', CHANGES)
def test_damage_of_any_file_is_told_or_harmless(original, change, tmp_path):
  kind, told = kind_of(original), 0
  for name in content(original):
    for seed in range(6):
      rng = np.random.default_rng([seed, len(name)])
      folder = copy_of(original, tmp_path)
      data = (folder / name).read_bytes()
      (folder / name).write_bytes(changed := change(data, rng))
      if told_or_right(kind, folder, int(rng.choice(STEPS))):
        assert changed != data
        told += 1
  assert told >= 6


@given(seed=st.integers(0, 2**32 - 1), step=st.sampled_from(STEPS), change=st.sampled_from(CHANGES))
@SHARED_FOLDER
def test_damage_of_a_file_is_told_or_harmless(original, tmp_path, seed, step, change):
  rng = np.random.default_rng(seed)
  folder = copy_of(original, tmp_path)
  path = folder / rng.choice(sorted(content(original)))
  path.write_bytes(change(path.read_bytes(), rng))
  told_or_right(kind_of(original), folder, step)


@pytest.mark.parametrize('step', STEPS)
def test_a_missing_file_is_told_or_not_needed(original, step, tmp_path):
  """Journals and copies of older steps are not needed."""
  journals = {f'journal-{at}' for at in STEPS if at >= step}
  needed = {'store.json', 'rows', 'rows.sums', f'host-{step}'} | journals
  for name in content(original):
    folder = copy_of(original, tmp_path)
    (folder / name).unlink()
    assert bool(told_or_right(kind_of(original), folder, step)) == (name in needed)


@pytest.mark.parametrize('page', range(5))
def test_a_page_of_rows_that_was_lost_or_is_an_old_one_is_told(tmp_path, page):
  """Each record of it is sound by itself, or as if never written."""
  folder = make('disk', tmp_path)
  store = open_store('disk', tmp_path, LAYOUT, 9)
  old, here = (folder / 'rows').read_bytes(), slice(page * PAGE, (page + 1) * PAGE)
  take(store, 9)
  store.checkpoint(10, [])
  store.close()
  new = (folder / 'rows').read_bytes()
  for content in (old[here], bytes(len(new[here]))):
    damaged = bytearray(new)
    damaged[here] = content
    (folder / 'rows').write_bytes(damaged)
    wrong = np.flatnonzero([damaged[140 * id:140 * (id + 1)] != new[140 * id:140 * (id + 1)]
                            for id in EVERYTHING])
    assert len(wrong) >= 3
    assert told_or_right('disk', folder, 10) == len(wrong)


@KINDS
def test_a_store_half_of_which_is_of_another_time_is_told(kind, tmp_path):
  """As a copy is that was made while the run went on."""
  folder = make(kind, tmp_path / 'run')
  store = open_store(kind, tmp_path / 'run', LAYOUT, 9)
  files = content(folder)
  for step in range(9, 12):
    take(store, step)
  store.checkpoint(12, [])
  store.close()
  for name in ('rows', 'rows.sums') if kind == 'disk' else ('host-12',):
    other = copy_of(folder, tmp_path / 'other')
    (other / name).write_bytes(files.get(name, files.get('host-9')))
    assert told_or_right(kind, other, 12)


def zero_row(folder, id):
  with open(folder / 'rows', 'r+b') as file:
    file.seek(140 * id)
    file.write(bytes(140))


def test_a_damaged_row_that_is_overwritten_stays_damaged_at_older_checkpoints(tmp_path):
  folder = make('disk', tmp_path)
  id = np.flatnonzero(expected_at(9)[2] & ~np.isin(EVERYTHING, np.concatenate([ids_of(9), ids_of(10)])))[0]
  zero_row(folder, id)
  store = open_store('disk', tmp_path, LAYOUT, 9)
  store.write(np.array([id]), np.ones((1, 2, 16), np.float32), np.array([9]))
  np.testing.assert_array_equal(store.read(np.array([id])).rows, np.ones((1, 2, 16)))
  store.checkpoint(12, [9])
  store.close()
  store = open_store('disk', tmp_path, LAYOUT, 12)
  assert store.read(np.array([id])).seen == 9
  store.close()
  store = open_store('disk', tmp_path, LAYOUT, 9)
  with pytest.raises(UserError, match=f'damaged at instance {id}: bring the folder back from a copy'):
    store.read(np.array([id]))
  store.close()


def test_the_way_back_from_a_damaged_row_is_told_and_leads_back(tmp_path):
  """To the last checkpoint since which a journal holds it; none, if it was not written since the oldest."""
  folder = make('disk', tmp_path)
  since = lambda step: np.unique(np.concatenate([ids_of(done) for done in range(step, 9)]))
  between = np.setdiff1d(since(6), np.concatenate([ids_of(9), ids_of(10)]))[0]
  zero_row(folder, between)
  store = open_store('disk', tmp_path, LAYOUT, 9)
  answer = (f'damaged at instance {between}: move the checkpoints after step 6 out of the run\'s folder and '
            'run the same command again: journal-6 holds the row')
  with pytest.raises(UserError, match=answer):
    store.read(np.array([between]))
  store.close()
  assert told_or_right('disk', folder, 6) == 0

  store = open_store('disk', tmp_path, LAYOUT, 6)
  for step in (6, 7):
    take(store, step)
  id = ids_of(7)[0]
  zero_row(folder, id)
  with pytest.raises(UserError, match=r'run the same command again to go on .* checkpoint: journal-6 holds'):
    store.read(ids_of(7))
  store.close()
  assert told_or_right('disk', folder, 6) == 0


def test_the_way_back_from_a_damaged_copy_is_told_and_leads_back(tmp_path):
  """To the last copy before it that is whole."""
  folder = make('host', tmp_path)
  for step in (9, 6):
    path = folder / f'host-{step}'
    path.write_bytes(zero_a_page(path.read_bytes(), np.random.default_rng(step)))
  with pytest.raises(UserError, match=r'host-9 is damaged at byte \d+: move the checkpoints after step 3'):
    open_store('host', tmp_path, LAYOUT, 9)
  assert told_or_right('host', folder, 3) == 0
  path = folder / 'host-3'
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match=r'host-9 is damaged at byte \d+: bring the folder back'):
    open_store('host', tmp_path, LAYOUT, 9)


@KINDS
@pytest.mark.parametrize('steps', [(9, 6), (6, 3), (3,)])
def test_a_store_of_version_1_gets_its_checksums_as_it_is_opened(kind, steps, tmp_path):
  folder = make(kind, tmp_path)
  store = open_store(kind, tmp_path, LAYOUT, 9)
  store.close()
  as_version_1(store)
  for step in steps:
    assert told_or_right(kind, folder, step) == 0
  if kind == 'disk':
    zero_row(folder, ids_of(0)[0])
    assert told_or_right(kind, folder, steps[-1]) == 1


def test_a_damaged_journal_of_version_1_is_told_where_it_is_needed(tmp_path):
  folder = make('disk', tmp_path)
  store = open_store('disk', tmp_path, LAYOUT, 9)
  store.close()
  as_version_1(store)
  path = folder / 'journal-6'
  path.write_bytes(zero_a_page(path.read_bytes(), np.random.default_rng(0)))
  assert told_or_right('disk', folder, 9) == 0
  with pytest.raises(UserError, match='journal-6 is damaged at byte 0'):
    open_store('disk', tmp_path, LAYOUT, 3)


FIELDS = {'kind': 'disk', 'norm': 0.1 + 0.2, 'seed': 5, 'none': None}


@given(position=st.integers(0, 120), flip=st.integers(1, 255))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_byte_of_a_sealed_file_is_told_or_harmless(tmp_path, position, flip):
  """Harmless as white space."""
  path = tmp_path / 'file.json'
  sealed.write(path, FIELDS)
  data = bytearray(path.read_bytes())
  data[position % len(data)] ^= flip
  path.write_bytes(data)
  try:
    found = sealed.read(path)
  except UserError as error:
    found = str(error)
  assert found in ({'version': 2, **FIELDS}, f'{path} is damaged: {journal.REMEDY}')


@pytest.mark.parametrize('text', ['', '[1]', '3', 'null', '{"version": 2, "kind": "disk"}', '{"crc32": 3}',
                                  '{"version": "two"}', '\x00' * 40, '{"version": 1, "crc32": 0}'])
def test_what_is_no_sealed_file_is_told(tmp_path, text):
  (tmp_path / 'file.json').write_text(text)
  with pytest.raises(UserError, match=r'file\.json is damaged'):
    sealed.read(tmp_path / 'file.json')


def test_files_of_version_1_have_no_checksum(tmp_path):
  (tmp_path / 'file.json').write_text('{"kind": "disk"}')
  assert sealed.read(tmp_path / 'file.json') == {'version': 1, 'kind': 'disk'}


@KINDS
def test_a_store_of_a_later_version_is_refused(kind, tmp_path):
  folder = make(kind, tmp_path)
  sealed.write(folder / 'store.json', {**sealed.read(folder / 'store.json'), 'version': 3})
  with pytest.raises(UserError, match=r'store\.json is of version 3, which this conic_jax cannot read'):
    open_store(kind, tmp_path, LAYOUT, 9)
