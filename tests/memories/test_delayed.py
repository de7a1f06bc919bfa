"""The delayed update against dense momentum SGD in float64."""
import re
import zlib
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conic_jax.errors import UserError
from conic_jax.memories import delayed
from conic_jax.memories.delayed import Rates, read_rates
from conic_jax.optim import cosine_schedule

SGD = {'momentum': 0.9, 'weight_decay': 1e-2}
RATES = st.lists(st.one_of(st.just(float('nan')), st.floats(0, 0.5, width=32)), min_size=1, max_size=300)
SHARED_FOLDER = settings(max_examples=60, deadline=None,
                         suppress_health_check=[HealthCheck.function_scoped_fixture])


def sgd(weights, velocity, gradient, rate, momentum, weight_decay):
  """One step of momentum SGD; none where it was skipped."""
  if np.isnan(rate):
    return weights, velocity
  velocity = momentum * velocity + gradient + weight_decay * weights
  return weights - rate * velocity, velocity


def swept(rates, start, stop, momentum, weight_decay):
  """What the steps do to [v; w], step by step in float64: its columns are those of the identity."""
  velocity, weights = np.eye(2)
  for rate in np.float32(rates[start:stop]).astype(np.float64):
    weights, velocity = sgd(weights, velocity, 0, rate, momentum, weight_decay)
  return np.stack([velocity, weights])


def log_of(path, rates, **sgd):
  log = Rates(path, **(sgd or SGD))
  for rate in rates:
    log.append(rate)
  return log


@SHARED_FOLDER
@given(rates=RATES, data=st.data())
def test_products_are_what_the_steps_do_one_by_one(tmp_path, rates, data):
  stop = data.draw(st.integers(0, len(rates)))
  start = data.draw(st.lists(st.integers(0, stop), min_size=1, max_size=5))
  products = log_of(tmp_path / 'rates', rates).products(np.array(start), stop)
  expected = np.stack([swept(rates, s, stop, **SGD) for s in start])
  np.testing.assert_allclose(products, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.slow
def test_products_over_many_blocks(tmp_path):
  """Every alignment of both ends with the blocks of 64, 128, … 4096 steps."""
  rates = np.random.default_rng(0).uniform(0, 0.3, 5000)
  rates[::17] = np.nan
  log = log_of(tmp_path / 'rates', rates, momentum=0.9, weight_decay=1e-4)
  near = [0, 1, 63, 64, 65, 127, 128, 2047, 2048, 2049, 4095, 4096, 4097, 4160, 4999, 5000]
  for stop in near:
    start = np.array([s for s in near if s <= stop])
    expected = np.stack([swept(rates, s, stop, 0.9, 1e-4) for s in start])
    np.testing.assert_allclose(log.products(start, stop), expected, rtol=1e-10, atol=1e-14)


def test_a_log_without_steps_gives_identities(tmp_path):
  log = Rates(tmp_path / 'rates', **SGD)
  assert len(log) == 0
  np.testing.assert_array_equal(log.products(np.zeros(3, np.int64), 0), np.tile(np.eye(2), (3, 1, 1)))


@pytest.mark.parametrize('kept', [0, 1, 64, 200, 5000, 8200])
def test_a_log_read_again_goes_on_as_if_never_closed(tmp_path, kept):
  """A log of version 1, which had no checksums; they are there from its opening on."""
  rates = np.random.default_rng(1).uniform(0, 0.3, 8200).astype(np.float32)
  rates[::83] = np.nan
  (tmp_path / 'rates').write_bytes(rates.tobytes() + b'\0\0')  # A torn append ends it.
  log = Rates(tmp_path / 'rates', kept, old=True, **SGD)
  assert len(log) == kept
  assert (tmp_path / 'rates').stat().st_size == (tmp_path / 'rates.sums').stat().st_size == 4 * kept
  for rate in rates[kept:]:
    log.append(rate)
  assert (tmp_path / 'rates').read_bytes() == rates.tobytes()
  sums = [zlib.crc32(rates[:step + 1].tobytes()) for step in range(8200)]
  assert (tmp_path / 'rates.sums').read_bytes() == np.array(sums, '<u4').tobytes()
  start = np.arange(0, 8200, 37)
  expected = log_of(tmp_path / 'other', rates).products(start, 8200)
  np.testing.assert_allclose(log.products(start, 8200), expected, rtol=1e-12, atol=1e-15)


def test_one_thread_may_append_while_another_asks(tmp_path):
  rates = np.random.default_rng(3).uniform(0, 0.3, 20_000)
  whole, growing = log_of(tmp_path / 'whole', rates), Rates(tmp_path / 'rates', **SGD)
  with ThreadPoolExecutor(1) as pool:
    appending = pool.submit(lambda: [growing.append(rate) for rate in rates])
    while not appending.done():
      stop = len(growing)
      start = np.array([0, stop // 3, stop])
      np.testing.assert_array_equal(growing.products(start, stop), whole.products(start, stop))
    appending.result()


@pytest.mark.parametrize(('content', 'num_steps', 'message'), [
  (None, 3, 'rates of 0 steps where 3 were expected'),
  (np.zeros(2, np.float32), 3, 'rates of 2 steps where 3 were expected'),
  (np.array([0.1, np.inf, 0.1], np.float32), 3, 'damaged at step 1'),
  (np.array([0.1, 0.1, -1], np.float32), 3, 'damaged at step 2')])
def test_a_file_that_is_not_of_this_run_is_refused(tmp_path, content, num_steps, message):
  if content is not None:
    (tmp_path / 'rates').write_bytes(content.tobytes())
  with pytest.raises(UserError, match=message):
    Rates(tmp_path / 'rates', num_steps, old=True, **SGD)


def kept_log(folder, rates=(0.1, float('nan'), 0.3, 0.4, 0.25)):
  """The file of a log of five steps that was closed."""
  log = log_of(folder / 'rates', rates)
  log.checkpoint()
  log.close()
  return folder / 'rates'


@SHARED_FOLDER
@given(sums=st.booleans(), position=st.integers(0, 19), flip=st.integers(1, 255), kept=st.integers(1, 5))
def test_a_damaged_byte_is_told_or_harmless(tmp_path, sums, position, flip, kept):
  """Harmless behind the last step that is kept, and in checksums of steps before it."""
  path = kept_log(tmp_path)
  expected = read_rates(path, kept)
  damaged = path.with_name('rates.sums') if sums else path
  data = bytearray(damaged.read_bytes())
  data[position] ^= flip
  damaged.write_bytes(data)
  if (position < 4 * kept) if not sums else (position // 4 == kept - 1):
    before = path.read_bytes()
    with pytest.raises(UserError, match=f'rates or its checksums are damaged at step {position // 4}: bring'):
      Rates(path, kept, **SGD)
    assert path.read_bytes() == before
  else:
    np.testing.assert_array_equal(read_rates(path, kept), expected)


def move_the_end(data, rng):
  """Without its last bytes, or with some more."""
  return data[:rng.integers(len(data))] if rng.random() < 0.5 else data + rng.bytes(8)


def zero_some(data, rng):
  start, stop = sorted(rng.choice(len(data) + 1, 2, replace=False))
  return data[:start] + bytes(stop - start) + data[stop:]


def swap_two(data, rng):
  """Two words of 4 bytes."""
  words = np.frombuffer(data, '<u4').copy()
  one, other = rng.choice(len(words), 2, replace=False)
  words[[one, other]] = words[[other, one]]
  return words.tobytes()


@pytest.mark.parametrize('change', [move_the_end, zero_some, swap_two])
@pytest.mark.parametrize('name', ['rates', 'rates.sums'])
def test_other_damage_is_told_or_harmless(tmp_path, name, change):
  told = []
  for seed in range(40):
    rng = np.random.default_rng(seed)
    path = kept_log(tmp_path)
    kept = int(rng.integers(1, 6))
    expected = read_rates(path, kept)
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes(), rng))
    try:
      found = read_rates(path, kept)
    except UserError as error:
      told.append(str(error))
    else:
      np.testing.assert_array_equal(found, expected)
  assert len(told) >= 5
  assert all(re.search(r'rates(\.sums)? (or its checksums are|has the \w+ of \d) .*: bring', message)
             for message in told)


@pytest.mark.parametrize('name', ['rates', 'rates.sums'])
def test_a_missing_file_is_told(tmp_path, name):
  path = kept_log(tmp_path)
  (tmp_path / name).unlink()
  with pytest.raises(UserError, match=rf'{name} has the \w+ of 0 steps where 5 were expected'):
    Rates(path, 5, **SGD)
  assert not (tmp_path / name).exists()


def test_making_the_checksums_of_an_old_log_may_be_interrupted(tmp_path, monkeypatch):
  path = kept_log(tmp_path)
  (tmp_path / 'rates.sums').rename(tmp_path / 'expected')
  with monkeypatch.context() as patch:
    patch.setattr('os.replace', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      Rates(path, 5, old=True, **SGD)
  assert not (tmp_path / 'rates.sums').exists()
  Rates(path, 5, old=True, **SGD).close()
  assert (tmp_path / 'rates.sums').read_bytes() == (tmp_path / 'expected').read_bytes()
  Rates(path, 5, **SGD).close()


def test_a_full_disk_is_told(tmp_path, monkeypatch):
  log = log_of(tmp_path / 'rates', [0.1])
  monkeypatch.setattr('os.pwrite', lambda *_: 0)
  with pytest.raises(UserError, match='could not be written'):
    log.append(0.1)
  assert len(log) == 1


@pytest.mark.parametrize('rate', [0.3, 0.0, np.nan])
def test_the_matrix_is_a_step_of_sgd(rate):
  expected = swept([rate], 0, 1, **SGD)
  np.testing.assert_allclose(delayed.matrix(jnp.float32(rate), **SGD), expected, rtol=1e-6)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_apply_is_the_product_with_momentum_and_weights(seed):
  rng = np.random.default_rng(seed)
  products, rows = rng.normal(size=(3, 2, 2)).astype('f4'), rng.normal(size=(3, 2, 5)).astype('f4')
  expected = np.einsum('kij,kjd->kid', products, rows[:, ::-1])[:, ::-1]
  np.testing.assert_allclose(delayed.apply(jnp.array(products), jnp.array(rows)), expected, atol=1e-5)


@pytest.mark.parametrize(('weight_decay', 'skipped'), [(1e-4, 0), (1e-4, 0.1), (1e-2, 0.1), (0.0, 0.1)])
def test_two_epochs_of_random_visits_equal_dense_sgd(tmp_path, weight_decay, skipped):
  """A tenth of the steps float16 skips; at a visit a row gets a gradient, else weight decay alone."""
  num_rows, dim, batch, steps = 512, 8, 4, 256
  constants = {'momentum': 0.9, 'weight_decay': weight_decay}
  rng = np.random.default_rng(4)
  schedule = cosine_schedule(0.06, steps, warmup_steps=20)
  rates = np.where(rng.random(steps) < skipped, np.nan, jax.vmap(schedule)(jnp.arange(steps)))
  log = Rates(tmp_path / 'rates', **constants)
  apply = jax.jit(delayed.apply)
  caught_up = lambda rows, seen, step: np.asarray(
    apply(log.products(seen, step).astype(np.float32), rows))

  weights, velocity = rng.normal(size=(num_rows, dim)), np.zeros((num_rows, dim))
  rows, seen = np.stack([weights, velocity], axis=1).astype(np.float32), np.zeros(num_rows, np.int64)
  weights = rows[:, 0].astype(np.float64)
  for step, rate in enumerate(rates):
    visited = rng.choice(num_rows, batch, replace=False)
    gradient = np.zeros((num_rows, dim))
    gradient[visited] = rng.normal(size=(batch, dim)).astype(np.float32)
    weights, velocity = sgd(weights, velocity, gradient, rate, **constants)
    before = caught_up(rows[visited], seen[visited], step)
    stepped = sgd(before[:, 0], before[:, 1], gradient[visited], rate, **constants)
    rows[visited], seen[visited] = np.stack(stepped, axis=1), step + 1
    log.append(rate)

  ours = caught_up(rows, seen, steps)
  for part, expected in enumerate((weights, velocity)):
    assert np.abs(ours[:, part] - expected).max() <= 1e-5 * np.abs(expected).max()
