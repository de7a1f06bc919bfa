"""The queue against a plain deque, rows written in place against a dict, averages against float64."""
import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.test_util import check_grads
from support import collective_sizes

from conic_jax import memory
from conic_jax import mesh as meshes

DIM, BATCH = 4, 8


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def placed(queue, mesh):
  """The queue where its rules put it."""
  rules = memory.queue_rules(mesh) if queue.is_split else ()
  return jax.device_put({'queue': queue}, meshes.shardings({'queue': queue}, rules, mesh))['queue']


def oldest_first(queue):
  """(id, key) of every key of the ring."""
  order = (int(queue.position) + np.arange(queue.size)) % queue.size
  return np.asarray(queue.ids)[order], np.asarray(queue.keys)[order]


@pytest.mark.slow
@pytest.mark.parametrize('is_split', [True, False], ids=['split', 'copied'])
@pytest.mark.parametrize('size', [8, 37, 64])
def test_the_queue_is_a_deque(mesh, size, is_split):
  """200 batches, some keys not valid, some batches skipped; the sizes are multiples of the batch or not."""
  rng = np.random.default_rng(size)
  queue = placed(memory.init_queue(jax.random.key(0), size, DIM, mesh, is_split), mesh)
  ids, keys = oldest_first(queue)
  expected = collections.deque(zip(ids, keys, strict=True), maxlen=size)
  push = jax.jit(functools.partial(memory.push, mesh=mesh))
  for _ in range(200):
    keys, ids = np.float32(rng.normal(size=(BATCH, DIM))), np.int32(rng.integers(0, 1000, BATCH))
    valid, apply = rng.random(BATCH) < 0.8, rng.random() < 0.9
    # On CPU devices too many collectives under way at once wait for one another.
    queue = jax.block_until_ready(push(queue, keys, ids, valid, apply=apply))
    enters = valid & apply
    expected.extend(zip(ids[enters], keys[enters], strict=True))
  ids, keys = oldest_first(queue)
  np.testing.assert_array_equal(ids, [id for id, _ in expected])
  np.testing.assert_array_equal(keys, [key for _, key in expected])


def test_a_queue_starts_as_unit_noise_of_no_image(mesh8):
  queue = memory.init_queue(jax.random.key(0), 37, DIM, mesh8)
  np.testing.assert_allclose(np.linalg.norm(queue.keys, axis=1), 1, rtol=1e-6)
  assert (queue.ids == memory.NOISE).all()
  assert len(queue.keys) % 8 == 0
  smaller = memory.init_queue(jax.random.key(0), 11, DIM, mesh8)
  np.testing.assert_array_equal(smaller.keys[:11], queue.keys[:11])


@pytest.mark.parametrize('is_split', [True, False], ids=['split', 'copied'])
def test_cosines_are_with_the_queue_alone_and_leave_out_the_own_image(mesh, is_split):
  rng = np.random.default_rng(0)
  queue = memory.init_queue(jax.random.key(0), 37, DIM, mesh, is_split)
  ids = jnp.asarray(rng.integers(0, 10, len(queue.keys)), jnp.int32)
  queue = placed(queue.replace(ids=ids), mesh)
  queries, own = np.float32(unit(rng.normal(size=(BATCH, DIM)))), np.arange(BATCH, dtype=np.int32)
  cosines = jax.jit(functools.partial(memory.cosines, mesh=mesh))
  products = np.float64(queries) @ np.float64(queue.keys).T
  counts = np.broadcast_to(np.arange(len(queue.keys)) < 37, products.shape)
  np.testing.assert_allclose(cosines(queue, queries), np.where(counts, products, memory.MASKED), rtol=2e-5,
                             atol=1e-5)
  counts = counts & (own[:, None] != np.asarray(ids)[None])
  assert not counts[:, :37].all()
  masked = cosines(queue, queries, ids=own)
  np.testing.assert_allclose(masked, np.where(counts, products, memory.MASKED), rtol=2e-5, atol=1e-5)
  wanted = jax.P(None, 'data') if is_split else jax.P('data')
  assert masked.sharding.is_equivalent_to(NamedSharding(mesh, wanted), 2)


@pytest.mark.slow
def test_the_gradient_is_the_queries_alone(mesh8):
  queue = placed(memory.init_queue(jax.random.key(0), 20, DIM, mesh8), mesh8)
  queries = jnp.asarray(unit(np.random.default_rng(1).normal(size=(BATCH, DIM))), jnp.float32)
  loss = lambda queries: jax.nn.logsumexp(memory.cosines(queue, queries, mesh8) / 0.5)
  check_grads(loss, (queries,), order=1, modes=['rev'], atol=1e-2, rtol=1e-2)
  of_keys = jax.grad(lambda keys: jax.nn.logsumexp(
    memory.cosines(queue.replace(keys=keys), queries, mesh8) / 0.5))(queue.keys)
  assert not np.asarray(of_keys).any()


@pytest.mark.parametrize('is_split', [True, False], ids=['split', 'copied'])
def test_rows_are_written_where_they_lie(mesh, is_split):
  """Places are from −8 to 31 of 24 rows: what lies outside is dropped. No row moves to another device."""
  rng = np.random.default_rng(0)
  sharding = meshes.batch_sharding(mesh) if is_split else meshes.replicated(mesh)
  rows = jax.device_put(jnp.zeros((24, DIM)), sharding)
  expected = np.zeros((24, DIM), np.float32)
  write = jax.jit(functools.partial(memory.write_rows, mesh=mesh, is_split=is_split))
  batch = (jax.device_put(part, meshes.batch_sharding(mesh))
           for part in (np.arange(BATCH, dtype=np.int32), np.zeros((BATCH, DIM), np.float32)))
  assert max(collective_sizes(write.lower(rows, *batch).compile().as_text()), default=0) <= BATCH * DIM
  for _ in range(100):
    places, values = np.int32(rng.permutation(40)[:BATCH] - 8), np.float32(rng.normal(size=(BATCH, DIM)))
    rows = jax.block_until_ready(write(rows, places, values))
    inside = (places >= 0) & (places < 24)
    expected[places[inside]] = values[inside]
    np.testing.assert_array_equal(rows, expected)
  assert rows.sharding.is_equivalent_to(sharding, 2)


def test_an_average_follows_its_formula_over_many_steps():
  rng = np.random.default_rng(0)
  average, expected = {'w': jnp.zeros(3)}, np.zeros(3)
  step = jax.jit(functools.partial(memory.ema, momentum=0.99))
  for _ in range(300):
    new = np.float32(rng.normal(size=3))
    average, expected = step(average, {'w': new}), 0.99 * expected + 0.01 * new
  np.testing.assert_allclose(average['w'], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('schedule', 'step', 'expected'), [
  ('constant', 70, 0.9), ('cosine', 0, 0.9), ('cosine', 50, 0.95), ('cosine', 100, 1.0),
  ('cosine', 130, 1.0)])
def test_momentum_is_constant_or_goes_to_one(schedule, step, expected):
  np.testing.assert_allclose(memory.ema_momentum(0.9, schedule, jnp.int32(step), 100), expected, rtol=1e-6)


def test_another_schedule_is_refused():
  with pytest.raises(ValueError, match='there is: constant, cosine'):
    memory.ema_momentum(0.9, 'linear', jnp.int32(0), 100)
