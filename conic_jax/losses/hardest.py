"""The hardest classes of each image: the K other rows with the largest cosine to its own.

Rows pass as keys in chunks, in ascending order of their ids, and every query keeps its K best so far, as in
One-Million: exact, with no more than a block of queries × a chunk of keys in memory. Ties go to the smaller
id, so the result does not depend on the number of devices.
"""
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax.errors import UserError
from conic_jax.hardware import local_rows
from conic_jax.hardware.mesh import split
from conic_jax.losses import normalise

_CHUNK_SIZE = 65536
_GROUP = 8
# Chunk sizes are multiples of this, so that groups of groups of groups come out even.
_CHUNK_UNIT = _GROUP ** 3
# Up to this many columns for each result, all are searched at once; at least _GROUP, so that there are as
# many groups as results.
_COLUMNS_AT_ONCE = 12
# Besides K, the numbers of new keys that a chunk's selection is compiled for: late chunks bring few.
_FEW = (0, 8, 32)


class Best(NamedTuple):
  """The K best keys of each query so far, [Q, K] each: cosines in descending order, and ids."""
  cosines: jax.Array
  ids: jax.Array


def table(weights: jax.Array, *, num_instances: int, k: int, mesh: Mesh,
          dtype: jnp.dtype = jnp.float32) -> jax.Array:
  """The K hardest classes of every class.

  H(n) = the K classes j ≠ n of the largest w̄ₙᵀw̄ⱼ

  Each device keeps its own rows as queries. A step broadcasts a chunk of C = 65,536 keys, [C, D] in `dtype`,
  as a sum over the devices; all steps together send the rows once. A device holds a cosine and an id for each
  of its N'/T × K entries, a chunk of keys and a block of cosines.

  Args:
    weights: float32 [N', D], split over the mesh; rows from N on are padding.
    num_instances: N.
    k: K, at most N − 1.
    mesh: the mesh.
    dtype: the type of the factors of the cosines; sums are float32.

  Returns:
    int32 [N', K], split over the mesh like `weights`, the hardest first. The entries of padding rows are
    meaningless.

  Raises:
    UserError: if K is not in [1, N − 1].

  Source: One-Million, Eq. 2.
  """
  chex.assert_rank(weights, 2)
  check(k, num_instances)

  def local(weights):
    first = local_rows.first_row(len(weights), mesh)
    classes = first + jnp.arange(len(weights), dtype=jnp.int32)
    size = _chunk_size(num_instances)

    def chunk(index, best):
      ids = index * size + jnp.arange(size, dtype=jnp.int32)
      keys = jax.lax.psum(unit_rows(ids, weights, first).astype(dtype), mesh.axis_names)
      return _absorb(best, weights, classes, keys, ids, num_instances, block)

    block = _block_size(num_instances, mesh)
    best = nothing(len(weights), k, block, mesh)
    return jax.lax.fori_loop(0, -(-num_instances // size), chunk, best).ids[:len(weights)]

  spec = split(mesh)
  return jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)(weights)


def for_batch(weights: jax.Array, ids: jax.Array, *, num_instances: int, k: int, mesh: Mesh,
              dtype: jnp.dtype = jnp.float32) -> jax.Array:
  """The K hardest classes of the classes in a batch: the rows of `table` for the batch alone.

  Each device finds the K best of its own rows for the whole batch; then the devices exchange these, and each
  merges the candidates for its share. Only the rows of the batch, [B, D], and the K best, [B, K], are
  communicated.

  Args:
    weights: float32 [N', D], split over the mesh; rows from N on are padding.
    ids: int32 [B], split over the mesh, in [0, N).
    num_instances: N.
    k: K, at most N − 1.
    mesh: the mesh.
    dtype: the type of the factors of the cosines; sums are float32.

  Returns:
    int32 [B, K], split over the mesh like `ids`, the hardest first.

  Raises:
    UserError: if K is not in [1, N − 1].

  Source: One-Million, Eq. 2.
  """
  chex.assert_rank([weights, ids], [2, 1])
  check(k, num_instances)
  axes = mesh.axis_names

  def local(weights, ids):
    first = local_rows.first_row(len(weights), mesh)
    everyones = jax.lax.all_gather(ids, axes, tiled=True)
    queries = jax.lax.psum(unit_rows(everyones, weights, first), axes)
    size = _chunk_size(len(weights))

    def chunk(index, best):
      classes = first + index * size + jnp.arange(size, dtype=jnp.int32)
      keys = unit_rows(classes, weights, first).astype(dtype)
      end = jnp.minimum(first + len(weights), num_instances)
      return _absorb(best, queries, everyones, keys, classes, end, block)

    block = _block_size(len(everyones), mesh)
    best = nothing(len(everyones), k, block, mesh)
    best = jax.lax.fori_loop(0, -(-len(weights) // size), chunk, best)

    def exchange(entries):
      by_share = entries[:len(everyones)].reshape(mesh.size, len(ids), k)
      by_device = jax.lax.all_to_all(by_share, axes, 0, 0)
      return by_device.swapaxes(0, 1).reshape(len(ids), -1)
    return _largest_of(Best(*map(exchange, best)), k).ids

  spec = split(mesh)
  return jax.shard_map(local, mesh=mesh, in_specs=(spec, spec), out_specs=spec)(weights, ids)


def check(k: int, num_instances: int) -> None:
  """Raises a UserError if K is not in [1, N − 1]."""
  if not 1 <= k < num_instances:
    raise UserError(f'config.smoothing.k is {k}, but of {num_instances} images each has '
                    f'{num_instances - 1} others: set config.smoothing.k to a number from 1 to that.')


def _chunk_size(num_rows):
  """Keys per chunk, about the same in each."""
  chunks = -(-num_rows // _CHUNK_SIZE)
  return -(-num_rows // (chunks * _CHUNK_UNIT)) * _CHUNK_UNIT


def _block_size(num_queries, mesh):
  """Queries per block: 16 MiB of cosines to fit a CPU's caches, 256 MiB for a device with many cores."""
  return min(64 if mesh.devices.flat[0].platform == 'cpu' else 1024, num_queries)


def unit_rows(ids: jax.Array, weights: jax.Array, first: jax.Array) -> jax.Array:
  """Unit rows [M, D] of these ids; zero if another device holds them."""
  return normalise(local_rows.take(weights, local_rows.local_places(ids, first, len(weights))))


def nothing(num_queries: int, k: int, block: int, mesh: Mesh) -> Best:
  """Results before any key, for whole blocks of queries."""
  shape = (-(-num_queries // block) * block, k)
  nothing = Best(jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))
  return jax.lax.pcast(nothing, mesh.axis_names, to='varying')


def _absorb(best, queries, query_ids, keys, key_ids, end, block):
  """`best` updated with a chunk of keys of larger ids than all before; ids from `end` on do not exist."""
  def step(index, best):
    start = index * block
    places = jnp.minimum(start + jnp.arange(block), len(queries) - 1)
    cosines = products(normalise(queries[places]).astype(keys.dtype), keys)
    excluded = (key_ids[None] == query_ids[places][:, None]) | (key_ids[None] >= end)
    old = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, block), best)
    new = merge(old, jnp.where(excluded, -jnp.inf, cosines), key_ids)
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, 0), best, new)

  return jax.lax.fori_loop(0, len(best.ids) // block, step, best)


def products(queries: jax.Array, keys: jax.Array) -> jax.Array:
  """Cosines of unit rows, float32 [Q, C]; float32 factors are not rounded."""
  precision = jax.lax.Precision.HIGHEST if keys.dtype == jnp.float32 else None
  return jax.lax.dot_general(queries, keys, (((1,), (1,)), ((), ())),
                             precision=precision, preferred_element_type=jnp.float32)


def merge(best: Best, cosines: jax.Array, key_ids: jax.Array) -> Best:
  """The best of `best` and of the keys of these ids [C] with these cosines [Q, C]; the first among equals."""
  k = best.ids.shape[1]

  def with_at_most(count, best, cosines):
    if not count:
      return best
    largest, places = _largest(cosines, count)
    return _largest_of(Best(jnp.concatenate([best.cosines, largest], axis=1),
                             jnp.concatenate([best.ids, key_ids[places]], axis=1)), k)

  counts = [*(few for few in _FEW if few < k), min(k, cosines.shape[1])]
  entering = jnp.max(jnp.sum(cosines > best.cosines[:, -1:], axis=1))
  return jax.lax.switch(jnp.searchsorted(jnp.asarray(counts[:-1]), entering),
                        [functools.partial(with_at_most, count) for count in counts], best, cosines)


def _largest_of(candidates, k):
  """The K best of each row's candidates; the first ones among equals."""
  cosines, places = jax.lax.top_k(candidates.cosines, k)
  return Best(cosines, jnp.take_along_axis(candidates.ids, places, axis=1))


def _largest(values, count):
  """`jax.lax.top_k` by way of the groups with the largest maxima, since no other group can hold a result."""
  width = values.shape[1]
  if width <= _COLUMNS_AT_ONCE * count or width % _GROUP:
    return jax.lax.top_k(values, count)
  grouped = values.reshape(len(values), -1, _GROUP)
  _, groups = _largest(grouped.max(axis=2), count)
  # In order of position, so that the first of equal values is found first.
  groups = jnp.sort(groups, axis=1)
  candidates = jnp.take_along_axis(grouped, groups[:, :, None], axis=1).reshape(len(values), -1)
  largest, places = jax.lax.top_k(candidates, count)
  return largest, jnp.take_along_axis(groups, places // _GROUP, axis=1) * _GROUP + places % _GROUP
