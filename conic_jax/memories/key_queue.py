"""A queue of the keys of the last batches, split over the devices."""
import dataclasses
import functools

import chex
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from conic_jax.errors import UserError
from conic_jax.hardware import local_rows
from conic_jax.hardware.mesh import split
from conic_jax.losses import MASKED
from conic_jax.memories.instance_rows import initial_rows, padded_rows
from conic_jax.memories.memory import Memory

# The image id of a noise key, of which the initial queue consists.
NOISE = -1


@flax.struct.dataclass
class Queue:
  """The last K keys, a ring buffer.

  Attributes:
    keys: float32 [K', D] of unit norm; K' is K rounded up so that the devices can share them evenly.
    ids: int32 [K'], the image of each key; `NOISE` for a noise key.
    position: int32 [], where the next key goes.
    size: K.
    is_split: whether keys are split over the mesh, or every device has all.
  """
  keys: jax.Array
  ids: jax.Array
  position: jax.Array
  size: int = flax.struct.field(pytree_node=False)
  is_split: bool = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class KeyQueue(Memory):
  """A run's queue. The loss passes the arguments of `push`: 'keys', 'ids' and 'valid'.

  Attributes:
    size: K.
    dim: D.
    mesh: the mesh.
    is_split: whether keys are split over the mesh, or every device has all.
    field: the config field that sets the size.
    batch_keys: keys in a batch.

  Raises:
    UserError: if the queue cannot hold the keys of one batch.
  """
  size: int
  dim: int
  mesh: Mesh
  is_split: bool
  field: str
  batch_keys: int

  def __post_init__(self):
    if self.size < self.batch_keys:
      raise UserError(f'{self.field} is {self.size}, smaller than the {self.batch_keys} keys of a batch: set '
                      'it to at least that, or make config.batch_size smaller.')

  def init(self, rng: jax.Array) -> Queue:
    """The queue before the first step."""
    return init_queue(rng, self.size, self.dim, self.mesh, self.is_split)

  def update(self, state, seen, params, step, lr, applied):
    return push(state, **seen, mesh=self.mesh, applied=applied)

  def partition_rules(self):
    return (('^(keys|ids)$', split(self.mesh)),) if self.is_split else ()


def init_queue(rng: jax.Array, size: int, dim: int, mesh: Mesh, is_split: bool = True) -> Queue:
  """Initial queue of noise: normalised Gaussian vectors; each depends on (rng, position) alone.

  Source: MoCo (He et al. 2020) and its public code.
  """
  padded = padded_rows(size, mesh.size)
  return Queue(initial_rows(rng, jnp.arange(padded), dim, 1.0), jnp.full(padded, NOISE, jnp.int32),
               jnp.int32(0), size, is_split)


def push(queue: Queue, keys: jax.Array, ids: jax.Array, valid: jax.Array, mesh: Mesh,
         applied: jax.typing.ArrayLike = True) -> Queue:
  """The queue with these keys in place of its oldest.

  Keys are written in batch order, without gaps for invalid ones, and wrap around at the end: K need not be a
  multiple of the batch.

  Args:
    queue: the queue.
    keys: float32 [B, D], B ≤ K, split over the mesh.
    ids: int32 [B], their images; valid: bool [B], False for a key that is not added.
    mesh: the mesh.
    applied: bool []; if False, nothing changes.
  """
  chex.assert_shape(keys, (None, queue.keys.shape[1]))
  chex.assert_shape([ids, valid], (len(keys),))
  enters = valid & jnp.asarray(applied)
  order = jnp.cumsum(enters, dtype=jnp.int32)
  places = jnp.where(enters, (queue.position + order - 1) % queue.size, len(queue.keys))
  write = functools.partial(local_rows.write, indices=places, mesh=mesh, is_split=queue.is_split)
  return queue.replace(keys=write(queue.keys, values=keys), ids=write(queue.ids, values=ids),
                       position=(queue.position + order[-1]) % queue.size)


def cosines(queue: Queue, queries: jax.Array, mesh: Mesh, ids: jax.Array | None = None) -> jax.Array:
  """q·k₋ of every query with every key of the queue, computed where the keys are stored.

  Args:
    queue: the queue; its keys carry no gradient.
    queries: float32 [B, D], of unit norm.
    mesh: the mesh.
    ids: int32 [B]; if given, the keys of a query's own image are not negatives.

  Returns:
    float32 [B, K'], split over the keys (over the queries if every device has all keys); `MASKED` for keys
    that are not negatives, which stay masked after division by τ.
  """
  chex.assert_shape(queries, (None, queue.keys.shape[1]))
  if ids is not None:
    chex.assert_shape(ids, (len(queries),))
  where = PartitionSpec(None, mesh.axis_names) if queue.is_split else split(mesh)
  keys = jax.lax.stop_gradient(queue.keys)
  products = jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
  products = jax.lax.with_sharding_constraint(products, NamedSharding(mesh, where))
  counted = (jnp.arange(len(keys)) < queue.size)[None]
  if ids is not None:
    counted = counted & (ids[:, None] != queue.ids[None])
  return jnp.where(counted, products, MASKED)
