"""The delayed update against dense momentum SGD in float64."""
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conic_jax.errors import UserError
from conic_jax.memories import delayed
from conic_jax.memories.delayed import Rates
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
  rates = np.random.default_rng(1).uniform(0, 0.3, 8200).astype(np.float32)
  rates[::83] = np.nan
  (tmp_path / 'rates').write_bytes(rates.tobytes() + b'\0\0')  # A torn append ends it.
  log = Rates(tmp_path / 'rates', kept, **SGD)
  assert len(log) == kept
  assert (tmp_path / 'rates').stat().st_size == 4 * kept
  for rate in rates[kept:]:
    log.append(rate)
  assert (tmp_path / 'rates').read_bytes() == rates.tobytes()
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
    Rates(tmp_path / 'rates', num_steps, **SGD)


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
