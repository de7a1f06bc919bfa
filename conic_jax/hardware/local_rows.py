"""Rows split over the devices, read and written where they are stored: no row moves to another device."""
import functools

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax.hardware.mesh import replicated, split

# ---- On one device, inside a shard_map ------------------------------------------------------------


def first_row(num_rows: int, mesh: Mesh) -> jax.Array:
  """Global index of this device's first row, if each device has `num_rows`: int32 []."""
  return jax.lax.axis_index(mesh.axis_names) * num_rows


def local_places(indices: jax.Array, first: jax.Array, num_rows: int) -> jax.Array:
  """Local positions of rows given by global index; `num_rows`, past the last, for rows of other devices.

  Args:
    indices: int32, of any shape.
    first: int32 [], from `first_row`.
    num_rows: rows of this device.
  """
  place = indices - first
  return jnp.where((place >= 0) & (place < num_rows), place, num_rows)


def take(rows: jax.Array, places: jax.Array) -> jax.Array:
  """This device's rows at `places`; zeros for places past the last row."""
  return rows.at[places].get(mode='fill', fill_value=0)


# ---- On all devices -------------------------------------------------------------------------------


def read(rows: jax.Array, indices: jax.Array, mesh: Mesh) -> jax.Array:
  """Rows at these indices.

  Args:
    rows: [N', ...], split over the mesh.
    indices: int32 [B], split over the mesh.
    mesh: the mesh.

  Returns:
    [B, ...], split over the mesh; zeros for an index outside [0, N').
  """
  chex.assert_rank(indices, 1)
  def local(rows, indices):
    everyones = jax.lax.all_gather(indices, mesh.axis_names, tiled=True)
    mine = take(rows, local_places(everyones, first_row(len(rows), mesh), len(rows)))
    return jax.lax.psum_scatter(mine, mesh.axis_names, tiled=True)

  spec = split(mesh)
  return jax.shard_map(local, mesh=mesh, in_specs=(spec, spec), out_specs=spec)(rows, indices)


def write(rows: jax.Array, indices: jax.Array, values: jax.Array, mesh: Mesh,
          is_split: bool = True) -> jax.Array:
  """`rows` with these values at these indices.

  Args:
    rows: [N', ...], split over the mesh, or replicated.
    indices: int32 [B], unique within [0, N'); those outside are dropped.
    values: [B, ...], split over the mesh.
    mesh: the mesh.
    is_split: whether `rows` is split.
  """
  chex.assert_rank(indices, 1)
  chex.assert_shape(values, (len(indices), *rows.shape[1:]))
  if not is_split:
    indices, values = (jax.lax.with_sharding_constraint(x, replicated(mesh)) for x in (indices, values))
    return rows.at[local_places(indices, jnp.int32(0), len(rows))].set(values, mode='drop')
  gather = functools.partial(jax.lax.all_gather, axis_name=mesh.axis_names, tiled=True)

  def local(rows, indices, values):
    place = local_places(gather(indices), first_row(len(rows), mesh), len(rows))
    return rows.at[place].set(gather(values), mode='drop')

  spec = split(mesh)
  return jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec)(rows, indices, values)
