"""Cells of the unit sphere, in an order where neighbours are alike: k-means of a sample of the rows.

All of it runs inside a shard_map; the centres are the same on every device.
"""
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax.hardware import local_rows
from conic_jax.losses import normalise

# Rows of the sample for each cell, and passes over them.
_ROWS_PER_CELL, _PASSES = 16, 6
_POWER_STEPS = 8
# Rows that are compared with all centres at a time.
_BLOCK = 1024
# Rows that all devices exchange at a time.
_EXCHANGED = 65536


def centres(weights: jax.Array, *, num_instances: int, num_cells: int, mesh: Mesh, key: jax.Array
            ) -> jax.Array:
  """Centres of spherical k-means on a sample of 16 rows for each cell, split over the devices.

  Each pass maps every centre to the direction of Σ w̄ₙ over the sampled rows that are nearest to it; a centre
  without any stays.

  Args:
    weights: float32 [N'/T, D], this device's rows; rows from N on are padding.
    num_instances: N.
    num_cells: C, a power of two, at most N.
    mesh: the mesh, of T devices.
    key: draws the sample.

  Returns:
    float32 [C, D] of unit norm, in the order of `in_order`.

  Source: "Concept Decompositions for Large Sparse Text Data using Clustering".
  """
  axes = mesh.axis_names
  size = min(num_instances, _ROWS_PER_CELL * num_cells)
  drawn = jax.random.permutation(key, num_instances)[:size]
  share = -(-size // mesh.size)
  places = jax.lax.axis_index(axes) * share + jnp.arange(share)
  mine = jnp.where(places < size, drawn.at[places].get(mode='clip'), -1)
  sample = normalise(rows_at(weights, mine, mesh))
  first = local_rows.first_row(len(weights), mesh)
  held = local_rows.take(weights, local_rows.local_places(drawn[:num_cells], first, len(weights)))

  def step(_, means):
    sums = jax.lax.psum(_sums(sample, means, axes), axes)
    return jnp.where(jnp.any(sums != 0, axis=1, keepdims=True), normalise(sums), means)

  return in_order(jax.lax.fori_loop(0, _PASSES, step, normalise(jax.lax.psum(held, axes))))


def _sums(sample, means, axes):
  """Σ of the unit rows nearest to each centre [C, D], as products: a scatter adds in any order on GPUs."""
  blocks = jnp.pad(sample, ((0, -len(sample) % _BLOCK), (0, 0))).reshape(-1, _BLOCK, sample.shape[1])

  def add(total, block):
    theirs = jnp.argmax(block @ means.T, axis=1)
    return total + jax.nn.one_hot(theirs, len(means), dtype=block.dtype).T @ block, None
  nothing = jax.lax.pcast(jnp.zeros_like(means), axes, to='varying')
  return jax.lax.scan(add, nothing, blocks)[0]


def products(num_instances: int, num_cells: int) -> int:
  """Products of two rows that `centres`, and `nearest` for all rows, compute."""
  return (2 * _PASSES * min(num_instances, _ROWS_PER_CELL * num_cells) + num_instances) * num_cells


def in_order(vectors: jax.Array) -> jax.Array:
  """Vectors [C, D], C a power of two, ordered so that near ones are near in the order.

  Groups are halved at the median along their first principal direction, until one vector is left in each. The
  power iteration starts near the direction of the group before the cut, whose sign it keeps.
  """
  groups, direction = vectors[None], jnp.zeros_like(vectors[:1])
  while groups.shape[1] > 1:
    centred = groups - groups.mean(axis=1, keepdims=True)

    def power_step(_, direction, centred=centred):
      along = jnp.einsum('gsd,gd->gs', centred, direction)
      return normalise(jnp.einsum('gs,gsd->gd', along, centred))

    direction = jax.lax.fori_loop(0, _POWER_STEPS, power_step, normalise(direction + centred[:, 0] / 2))
    order = jnp.argsort(jnp.einsum('gsd,gd->gs', centred, direction), axis=1)
    groups = jnp.take_along_axis(groups, order[:, :, None], axis=1)
    groups = groups.reshape(-1, groups.shape[1] // 2, groups.shape[2])
    direction = jnp.repeat(direction, 2, axis=0)
  return groups[:, 0]


def nearest(rows: jax.Array, means: jax.Array) -> jax.Array:
  """The centre of the largest cosine with each row, int32 [M], from 1,024 × C cosines at a time."""
  return jax.lax.map(lambda row: jnp.argmax(means @ row).astype(jnp.int32), rows, batch_size=_BLOCK)


def rows_at(rows: jax.Array, places: jax.Array, mesh: Mesh) -> jax.Array:
  """Rows of any device, of which each device asks for its own, 65,536 over all devices at a time.

  Args:
    rows: [R, ...], this device's share of all rows.
    places: int32 [P], global indices; rows outside all are zeros.
    mesh: the mesh.

  Returns:
    [P, ...].
  """
  size = min(len(places), max(1, _EXCHANGED // mesh.size))
  steps = -(-len(places) // size)

  def step(places):
    everyones = jax.lax.all_gather(places, mesh.axis_names, tiled=True)
    first = local_rows.first_row(len(rows), mesh)
    held = local_rows.take(rows, local_rows.local_places(everyones, first, len(rows)))
    return jax.lax.psum_scatter(held, mesh.axis_names, tiled=True)

  padded = jnp.concatenate([places, jnp.full(steps * size - len(places), -1, places.dtype)])
  found = jax.lax.map(step, padded.reshape(steps, size))
  return found.reshape(-1, *rows.shape[1:])[:len(places)]
