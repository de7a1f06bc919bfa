"""The queue against a plain deque."""
import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.test_util import check_grads

from conic_jax.hardware import mesh as meshes
from conic_jax.memories import key_queue
from conic_jax.memories.key_queue import KeyQueue

DIM, BATCH = 4, 8


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def placed(queue, mesh):
  """The queue where its rules put it."""
  rules = KeyQueue(queue.size, DIM, mesh, queue.is_split, 'config.queue.size', BATCH).partition_rules()
  return jax.device_put(queue, meshes.shardings(queue, rules, mesh))


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
  queue = placed(key_queue.init_queue(jax.random.key(0), size, DIM, mesh, is_split), mesh)
  ids, keys = oldest_first(queue)
  expected = collections.deque(zip(ids, keys, strict=True), maxlen=size)
  push = jax.jit(functools.partial(key_queue.push, mesh=mesh))
  for _ in range(200):
    keys, ids = np.float32(rng.normal(size=(BATCH, DIM))), np.int32(rng.integers(0, 1000, BATCH))
    valid, applied = rng.random(BATCH) < 0.8, rng.random() < 0.9
    # On CPU devices too many collectives under way at once wait for one another.
    queue = jax.block_until_ready(push(queue, keys, ids, valid, applied=applied))
    enters = valid & applied
    expected.extend(zip(ids[enters], keys[enters], strict=True))
  ids, keys = oldest_first(queue)
  np.testing.assert_array_equal(ids, [id for id, _ in expected])
  np.testing.assert_array_equal(keys, [key for _, key in expected])


def test_a_queue_starts_as_unit_noise_of_no_image(mesh8):
  queue = key_queue.init_queue(jax.random.key(0), 37, DIM, mesh8)
  np.testing.assert_allclose(np.linalg.norm(queue.keys, axis=1), 1, rtol=1e-6)
  assert (queue.ids == key_queue.NOISE).all()
  assert len(queue.keys) % 8 == 0
  assert len(jax.tree.leaves(queue)) == 3, 'its size is no part of its state'
  smaller = key_queue.init_queue(jax.random.key(0), 11, DIM, mesh8)
  np.testing.assert_array_equal(smaller.keys[:11], queue.keys[:11])


@pytest.mark.parametrize('is_split', [True, False], ids=['split', 'copied'])
def test_cosines_are_with_the_queue_alone_and_leave_out_the_own_image(mesh, is_split):
  rng = np.random.default_rng(0)
  queue = key_queue.init_queue(jax.random.key(0), 37, DIM, mesh, is_split)
  ids = jnp.asarray(rng.integers(0, 10, len(queue.keys)), jnp.int32)
  queue = placed(queue.replace(ids=ids), mesh)
  queries, own = np.float32(unit(rng.normal(size=(BATCH, DIM)))), np.arange(BATCH, dtype=np.int32)
  cosines = jax.jit(functools.partial(key_queue.cosines, mesh=mesh))
  products = np.float64(queries) @ np.float64(queue.keys).T
  counts = np.broadcast_to(np.arange(len(queue.keys)) < 37, products.shape)
  np.testing.assert_allclose(cosines(queue, queries), np.where(counts, products, key_queue.MASKED), rtol=2e-5,
                             atol=1e-5)
  counts = counts & (own[:, None] != np.asarray(ids)[None])
  assert not counts[:, :37].all()
  masked = cosines(queue, queries, ids=own)
  np.testing.assert_allclose(masked, np.where(counts, products, key_queue.MASKED), rtol=2e-5, atol=1e-5)
  wanted = jax.P(None, 'data') if is_split else jax.P('data')
  assert masked.sharding.is_equivalent_to(NamedSharding(mesh, wanted), 2)


@pytest.mark.slow
def test_the_gradient_is_the_queries_alone(mesh8):
  queue = placed(key_queue.init_queue(jax.random.key(0), 20, DIM, mesh8), mesh8)
  queries = jnp.asarray(unit(np.random.default_rng(1).normal(size=(BATCH, DIM))), jnp.float32)
  loss = lambda queries: jax.nn.logsumexp(key_queue.cosines(queue, queries, mesh8) / 0.5)
  check_grads(loss, (queries,), order=1, modes=['rev'], atol=1e-2, rtol=1e-2)
  of_keys = jax.grad(lambda keys: jax.nn.logsumexp(
    key_queue.cosines(queue.replace(keys=keys), queries, mesh8) / 0.5))(queue.keys)
  assert not np.asarray(of_keys).any()
