"""What momentum and bank methods remember: a queue of keys, rows written where they lie, moving averages."""
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from conic_jax.classifier import full
from conic_jax.losses import MASKED
from conic_jax.mesh import replicated, split

# The image of a key that is noise, as the queue begins with.
NOISE = -1
# How the momentum of an average may go.
SCHEDULES = ('constant', 'cosine')


@flax.struct.dataclass
class Queue:
  """The last K keys, a ring.

  Attributes:
    keys: float32 [K', D] of unit norm; K' is K rounded up so that devices can share it.
    ids: int32 [K'], the image of each key; `NOISE` where there is none.
    position: int32 [], where the next key goes.
    size: K.
    is_split: whether keys are split over the mesh, or every device has all.
  """
  keys: jax.Array
  ids: jax.Array
  position: jax.Array
  size: int = flax.struct.field(pytree_node=False)
  is_split: bool = flax.struct.field(pytree_node=False)


def init_queue(rng: jax.Array, size: int, dim: int, mesh: Mesh, is_split: bool = True) -> Queue:
  """A queue of noise: Gaussian vectors, normalised, each a function of (rng, place) only.

  Source: MoCo (He et al. 2020) and its public code.
  """
  padded = full.padded_rows(size, mesh.size)
  return Queue(full.draw(rng, jnp.arange(padded), dim, 1.0), jnp.full(padded, NOISE, jnp.int32),
               jnp.int32(0), size, is_split)


def queue_rules(mesh: Mesh, name: str = 'queue') -> tuple[tuple[str, PartitionSpec], ...]:
  """Partition rules of a queue that is split, under this name of the method state."""
  return ((rf'^{name}/(keys|ids)$', split(mesh)),)


def push(queue: Queue, keys: jax.Array, ids: jax.Array, valid: jax.Array, mesh: Mesh,
         apply: jax.typing.ArrayLike = True) -> Queue:
  """The queue with these keys in the place of its oldest.

  Keys follow one another in the order of the batch, without gaps for those that are not valid, and go on
  at the start where they reach the end: K need not be a multiple of the batch.

  Args:
    queue: the queue.
    keys: float32 [B, D], B ≤ K, split over the mesh.
    ids: int32 [B], their images; valid: bool [B], False for a key that does not enter.
    mesh: the mesh.
    apply: bool []; where False nothing changes.
  """
  enters = valid & jnp.asarray(apply)
  order = jnp.cumsum(enters, dtype=jnp.int32)
  places = jnp.where(enters, (queue.position + order - 1) % queue.size, len(queue.keys))
  write = functools.partial(write_rows, places=places, mesh=mesh, is_split=queue.is_split)
  return queue.replace(keys=write(queue.keys, values=keys), ids=write(queue.ids, values=ids),
                       position=(queue.position + order[-1]) % queue.size)


def cosines(queue: Queue, queries: jax.Array, mesh: Mesh, ids: jax.Array | None = None) -> jax.Array:
  """q·k₋ of every query with every key of the queue, where the keys lie.

  Args:
    queue: the queue; its keys carry no gradient.
    queries: float32 [B, D], of unit norm.
    mesh: the mesh.
    ids: int32 [B]; given, the keys of a query's own image are no negatives.

  Returns:
    float32 [B, K'], split over the keys (over the queries where every device has all keys); `MASKED` for
    what is no negative, which it stays after a division by τ.
  """
  where = PartitionSpec(None, mesh.axis_names) if queue.is_split else split(mesh)
  keys = jax.lax.stop_gradient(queue.keys)
  products = jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
  products = jax.lax.with_sharding_constraint(products, NamedSharding(mesh, where))
  counted = (jnp.arange(len(keys)) < queue.size)[None]
  if ids is not None:
    counted = counted & (ids[:, None] != queue.ids[None])
  return jnp.where(counted, products, MASKED)


def write_rows(rows: jax.Array, places: jax.Array, values: jax.Array, mesh: Mesh,
               is_split: bool = True) -> jax.Array:
  """Writes values into rows where these lie; rows are never moved.

  Args:
    rows: [K', ...], split over the mesh, or everywhere.
    places: int32 [B], no two alike within [0, K'); what is outside is dropped.
    values: [B, ...], split over the mesh.
    mesh: the mesh.
    is_split: whether `rows` is split.
  """
  if not is_split:
    places, values = (jax.lax.with_sharding_constraint(x, replicated(mesh)) for x in (places, values))
    return rows.at[jnp.where(places < 0, len(rows), places)].set(values, mode='drop')
  gather = functools.partial(jax.lax.all_gather, axis_name=mesh.axis_names, tiled=True)

  def local(rows, places, values):
    place = gather(places) - jax.lax.axis_index(mesh.axis_names) * len(rows)
    place = jnp.where((place >= 0) & (place < len(rows)), place, len(rows))
    return rows.at[place].set(gather(values), mode='drop')

  spec = split(mesh)
  return jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec)(rows, places, values)


def ema(average: Any, new: Any, momentum: jax.typing.ArrayLike) -> Any:
  """m·average + (1 − m)·new for every leaf."""
  return jax.tree.map(lambda old, value: momentum * old + (1 - momentum) * value, average, new)


def ema_momentum(start: float, schedule: str, step: jax.Array, total_steps: int) -> jax.Array:
  """The momentum m of an average at a step.

  'constant': m₀. 'cosine': 1 − (1 − m₀)·½(cos(π·step/total) + 1), from m₀ to 1.

  Args:
    start: m₀.
    schedule: 'constant' or 'cosine'.
    step: int32 [], steps done before.
    total_steps: steps of the whole run.

  Returns:
    float32 [].

  Raises:
    ValueError: for another schedule.

  Source: BYOL (Grill et al. 2020), §3.3.
  """
  if schedule not in SCHEDULES:
    raise ValueError(f'The schedule is {schedule!r}; there is: {", ".join(SCHEDULES)}.')
  if schedule == 'constant':
    return jnp.float32(start)
  progress = jnp.minimum(step / total_steps, 1.0)
  return 1 - (1 - start) * (jnp.cos(jnp.pi * progress) + 1) / 2
