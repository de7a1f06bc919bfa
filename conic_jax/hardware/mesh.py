"""The mesh, the layout of the state and the batch on it, and how a process adds its rows to a batch."""
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from conic_jax.errors import UserError
from conic_jax.hardware.processes import find_devices


def make_mesh(axes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
  """Creates the mesh; by default one axis, 'data', over all devices.

  Args:
    axes: size of each axis by name, the slowest first; one of them may be -1, for the rest.
    devices: the devices to use, by default all.

  Raises:
    UserError: if the axes do not multiply to the number of devices.
  """
  devices = list(find_devices() if devices is None else devices)
  sizes = dict(axes or {'data': -1})
  known = int(np.prod([size for size in sizes.values() if size != -1]))
  sizes = {name: len(devices) // known if size == -1 else size for name, size in sizes.items()}
  if int(np.prod(list(sizes.values()))) != len(devices):
    raise UserError(f'The mesh {sizes} does not cover the {len(devices)} devices: set config.mesh so '
                    'that its axes multiply to that number (one axis may be -1).')
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=devices,
                       axis_types=(AxisType.Auto,) * len(sizes))


def split(mesh: Mesh) -> PartitionSpec:
  """First axis split over every device, as for the batch and the classifier's rows."""
  return PartitionSpec(mesh.axis_names)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """First axis of a batch split over every device of the mesh."""
  return NamedSharding(mesh, split(mesh))


def placed(shapes: Any, shardings: Any) -> Any:
  """Shapes with their shardings, as a checkpoint is restored into; both trees have the same structure."""
  return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                      shapes, shardings)


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy of the array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh, field: str = 'config.batch_size') -> None:
  """Raises a UserError, with the nearest sizes that work, if the mesh cannot split the batch."""
  if batch_size < 1 or batch_size % mesh.size:
    below = batch_size // mesh.size * mesh.size
    nearest = [size for size in (below, below + mesh.size) if size > 0]
    raise UserError(f'{field} {batch_size} cannot be split over {mesh.size} devices: the '
                    f'nearest that can are {" and ".join(map(str, nearest))}.')


def cut_batch_size(batch_size: int, num_images: int, mesh: Mesh, field: str, what: str = 'images') -> int:
  """The batch size; for sets smaller than a batch, the largest that the images fill and the mesh splits.

  Raises:
    UserError: if there are fewer images than devices, or the mesh cannot split the batch.
  """
  largest = num_images // mesh.size * mesh.size
  if not largest:
    raise UserError(f'{num_images} {what} are too few to train on {mesh.size} devices: use more of them, or '
                    'fewer devices.')
  check_batch_size(min(batch_size, largest), mesh, field)
  return min(batch_size, largest)


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """Positions in the global batch of the rows on this process's devices, in ascending order."""
  index_map = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  return np.unique(np.concatenate([np.arange(batch_size)[index[0]] for index in index_map.values()]))  # pyright: ignore[reportOptionalSubscript]


def to_global(batch: Any, mesh: Mesh) -> Any:
  """Global arrays, split over the mesh, from the rows that each process has read."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def shardings(tree: Any, rules: Sequence[tuple[str, PartitionSpec]], mesh: Mesh) -> Any:
  """Sharding of each leaf: that of the first rule whose pattern matches its path.

  Args:
    tree: arrays or shapes.
    rules: (regular expression searched in the path 'a/b/c', partition) pairs; a leaf that matches none is
      replicated.
    mesh: the mesh.

  Returns:
    A tree of `NamedSharding`, of the same structure.
  """
  def of(path, _):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    spec = next((spec for pattern, spec in rules if re.search(pattern, name)), PartitionSpec())
    return NamedSharding(mesh, spec)
  return jax.tree_util.tree_map_with_path(of, tree)


def compute_dtype(name: str, device: jax.Device | None = None) -> jnp.dtype:  # pyright: ignore[reportInvalidTypeForm]
  """Type of activations and products; 'auto' is what the device (by default the first) computes fast."""
  if name == 'auto':
    chosen = find_devices()[0] if device is None else device
    name = 'float32'
    if chosen.platform == 'tpu':
      name = 'bfloat16'
    elif chosen.platform == 'gpu':
      name = 'bfloat16' if float(chosen.compute_capability) >= 8 else 'float16'
  if name not in ('float32', 'bfloat16', 'float16'):
    raise UserError(f"config.dtype is '{name}'; available: auto, float32, bfloat16, float16.")
  return jnp.dtype(name)
