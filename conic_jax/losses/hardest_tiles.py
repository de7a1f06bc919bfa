"""The hardest classes by an approximate search: each row meets a sixth of the others, those most like it.

Rows are sorted by their cell of a k-means and cut into tiles of 128. A tile's rows are compared, as dense
products, with those of the sixth of all tiles whose means are nearest to them. The exact search of
`hardest.table` is the reference.
"""
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax.hardware import local_rows
from conic_jax.hardware.mesh import split
from conic_jax.losses import cells, hardest, normalise

_TILE = 128
# One of so many tiles is searched, but at least so many tiles.
_ONE_OF, _LEAST = 6, 32
# 1/τ of the votes: only the tiles nearest to a row count. Every fourth row votes.
_SHARPNESS, _VOTERS = 20.0, 4
# Tiles that are broadcast at a time, and compared at a time.
_CHUNK, _AT_ONCE = 512, 64
# More cells only cost: a sample of them must fit in memory.
_MOST_CELLS = 2 ** 14


class Plan(NamedTuple):
  """Numbers of a search.

  Attributes:
    num_instances: N; k: K.
    tiles: tiles of all devices; filled: those that have rows; searched: those that each is compared with.
    cells: C, cells of the k-means.
  """
  num_instances: int
  k: int
  tiles: int
  filled: int
  searched: int
  cells: int

  def share_of_products(self) -> float:
    """Products of two rows in this search, by those of the exact one, N²."""
    means = cells.products(self.num_instances, self.cells)
    votes = 2 * self.num_instances // _VOTERS * self.filled
    return (self.num_instances * self.searched * _TILE + means + votes) / self.num_instances ** 2


def make_plan(num_instances: int, num_rows: int, k: int, mesh_size: int) -> Plan:
  """The plan for N of N' rows on so many devices."""
  tiles = -(-num_rows // (_TILE * mesh_size)) * mesh_size
  filled = -(-num_instances // _TILE)
  # One tile may be filled in part, and another is the most that rounding may leave out.
  searched = min(tiles, max(-(-filled // _ONE_OF), -(-(k + 1) // _TILE) + 2, _LEAST))
  num_cells = min(_MOST_CELLS, 2 ** (max(1, num_instances // _TILE).bit_length() - 1))
  return Plan(num_instances, k, tiles, filled, searched, num_cells)


def table(weights: jax.Array, *, num_instances: int, k: int, mesh: Mesh, key: jax.Array) -> jax.Array:
  """Nearly the K hardest classes of every class: `hardest.table` with less than a fifth of its products.

  v(t, u) = mean over every fourth n of tile t of e^{20 (w̄ₙᵀm̄ᵤ − 1)}, m̄ᵤ the direction of tile u's mean

  Tile t is compared with itself and with the tiles of the largest v(t, u): a sixth of all, at least 32. A
  device holds its share of the rows once more and of the table twice, a few int32 for each of the N' rows,
  the means of all tiles, a chunk of 65,536 keys and a block of cosines.

  Args:
    weights: float32 [N', D], split over the mesh; rows from N on are padding.
    num_instances: N.
    k: K, at most N − 1.
    mesh: the mesh.
    key: draws the sample for the cells.

  Returns:
    int32 [N', K], split over the mesh like `weights`, the hardest first: K different classes, never the own
    one. The same in every run on a mesh; other numbers of devices may find others. The entries of padding
    rows are meaningless.

  Raises:
    UserError: if K is not in [1, N − 1].

  Source: One-Million, Eq. 2; "Billion-scale similarity search with GPUs" for cells of a k-means.
  """
  chex.assert_rank(weights, 2)
  hardest.check(k, num_instances)
  plan = make_plan(num_instances, len(weights), k, mesh.size)

  def local(weights, key):
    order = _order(weights, plan, mesh, key)
    position = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=jnp.int32))
    share = len(order) // mesh.size
    ids = jax.lax.dynamic_slice_in_dim(order, local_rows.first_row(share, mesh), share)
    rows = normalise(cells.rows_at(weights, ids, mesh))
    found = _search(jnp.where(ids[:, None] < num_instances, rows, 0), ids, order, plan, mesh)
    first = local_rows.first_row(len(weights), mesh)
    return cells.rows_at(found, jax.lax.dynamic_slice_in_dim(position, first, len(weights)), mesh)

  spec = split(mesh)
  return jax.shard_map(local, mesh=mesh, in_specs=(spec, jax.sharding.PartitionSpec()), out_specs=spec)(
    weights, key)


def _order(weights, plan, mesh, key):
  """Ids of all rows by their cell, padding last: int32 [tiles × 128]."""
  means = cells.centres(weights, num_instances=plan.num_instances, num_cells=plan.cells, mesh=mesh, key=key)
  ids = local_rows.first_row(len(weights), mesh) + jnp.arange(len(weights))
  mine = jnp.where(ids < plan.num_instances, cells.nearest(normalise(weights), means), plan.cells)
  everyones = jax.lax.all_gather(mine, mesh.axis_names, tiled=True)
  padded = jnp.pad(everyones, (0, plan.tiles * _TILE - len(everyones)), constant_values=plan.cells)
  return jnp.argsort(padded, stable=True).astype(jnp.int32)


def _search(rows, ids, order, plan, mesh):
  """The K best, by id [R, K], of this device's unit rows [R, D] in the order of cells; zeros are padding."""
  tiles = rows.reshape(-1, _TILE, rows.shape[1])
  first = jax.lax.axis_index(mesh.axis_names) * len(tiles)
  means = jax.lax.all_gather(normalise(tiles.mean(axis=1)), mesh.axis_names, tiled=True)
  bars = jax.lax.map(lambda tile: _bar(tiles[tile], first + tile, means, plan), jnp.arange(len(tiles)))
  at_once = min(_AT_ONCE, plan.searched)
  size = -(-min(_CHUNK, plan.tiles) // at_once) * at_once

  def chunk(index, best):
    names = index * size + jnp.arange(size)
    places = (names[:, None] * _TILE + jnp.arange(_TILE)[None]).reshape(-1)
    held = local_rows.take(rows, local_rows.local_places(places, first * _TILE, len(rows)))
    keys = jax.lax.psum(held, mesh.axis_names).reshape(size, _TILE, -1)
    key_ids = order.at[places].get(mode='fill', fill_value=plan.num_instances).reshape(size, _TILE)
    near = means.at[names].get(mode='fill', fill_value=0)

    def search_for(tile, best):
      start = tile * _TILE
      old = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, _TILE), best)
      own = jax.lax.dynamic_slice_in_dim(ids, start, _TILE)
      votes = _votes(tiles[tile], first + tile, near, names, plan)
      new = _absorb(old, tiles[tile], own, keys, key_ids, votes, bars[tile], plan)
      return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, 0), best, new)
    return jax.lax.fori_loop(0, len(tiles), search_for, best)

  best = hardest.nothing(len(rows), plan.k, _TILE, mesh)
  return jax.lax.fori_loop(0, -(-plan.tiles // size), chunk, best).ids


def _votes(rows, own, means, names, plan):
  """v of a tile's rows for tiles of these means and names; 2 for itself, above all, and −1 for empty ones."""
  votes = jnp.exp(_SHARPNESS * (hardest.products(rows[::_VOTERS], means) - 1)).mean(axis=0)
  return jnp.where(names >= plan.filled, -1, jnp.where(names == own, 2, votes))


def _bar(rows, own, means, plan):
  """The least vote that a tile needs to be searched, lowered by more than rounding may differ."""
  votes = _votes(rows, own, means, jnp.arange(len(means)), plan)
  return jnp.sort(votes)[-plan.searched] * (1 - 1e-4)


def _absorb(best, rows, own_ids, keys, key_ids, votes, bar, plan):
  """`best` of a tile's rows with the keys of a chunk's tiles whose votes reach the bar, some at a time."""
  ranking = jnp.argsort(-votes)
  count = jnp.sum(votes >= bar)
  at_once = min(_AT_ONCE, plan.searched)

  def step(index, best):
    ranks = index * at_once + jnp.arange(at_once)
    some = ranking[ranks]
    some_ids = jnp.where((ranks < count)[:, None], key_ids[some], plan.num_instances).reshape(-1)
    cosines = hardest.products(rows, keys[some].reshape(-1, rows.shape[1]))
    excluded = (some_ids[None] == own_ids[:, None]) | (some_ids[None] >= plan.num_instances)
    return hardest.merge(best, jnp.where(excluded, -jnp.inf, cosines), some_ids)
  return jax.lax.fori_loop(0, -(-count // at_once), step, best)
