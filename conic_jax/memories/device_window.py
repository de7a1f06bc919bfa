"""The sampled softmax's window on the device, and the exchange of its rows with those outside.

The window holds N′ of the N rows; its slots are the classes of `partitioned.scores` and
`instance_rows.update`. Before a step's loss the batch's rows enter and the oldest are evicted. An entering
row gets the updates it missed: [v; w] at step t is P(s → t) [v; w] at step s, when it left. The host computes
P except for the latest steps, since it may not know yet whether float16 skipped them; the device has those in
its clock.

Source: ConIC, §4 and Appendix A.2.
"""
import dataclasses
import functools

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from conic_jax.hardware import local_rows
from conic_jax.hardware.mesh import split
from conic_jax.memories import delayed
from conic_jax.memories.instance_rows import Rows, RowsSgd, initial_rows, padded_rows
from conic_jax.memories.instance_rows import init as init_rows
from conic_jax.memories.window import NEVER_RENEWED

# R: the most steps that the host may lag behind the device. Rows evicted in them are still on the device.
HOST_LAG = 8
# The slot of an unused swap: beyond the end of every array.
NO_SLOT = np.iinfo(np.int32).max

# Where an entering row comes from; RECENT + i is row i of `Recent`, seen as [R·B, 2, D].
OUTSIDE, FRESH, RECENT = 0, 1, 2


@flax.struct.dataclass
class Clock:
  """Effect of the last steps on a row without a gradient.

  Attributes:
    updates: int32 [], updates applied before the latest step.
    lr: float32 [], the rows' learning rate in that step.
    decays: float32 [R, 2, 2], A(η) of each of the R steps before it, the latest last; the identity for a
      skipped one.
  """
  updates: jax.Array
  lr: jax.Array
  decays: jax.Array


@flax.struct.dataclass
class Recent:
  """Rows evicted in the last R steps, where the rows outside live on the host.

  Attributes:
    rows: float32 [R, B, 2, D], those evicted in step t at t mod R; weights, then momentum.
  """
  rows: jax.Array


@flax.struct.dataclass
class DeviceStore:
  """All rows on the device, as the store of those outside the window.

  Attributes:
    rows: float32 [N padded, 2, D], weights and momentum.
    seen: int32 [N padded], the step before whose update the row had this value.
  """
  rows: jax.Array
  seen: jax.Array


@flax.struct.dataclass
class Window:
  """The sampled classifier.

  Attributes:
    rows: rows by slot, [N′ padded, D], with their momentum.
    classes: int32 [N′], the class in each slot.
    renewed: int32 [N′], the step in which that class was last in a batch.
    outside: where evicted rows go.
    clock: effect of the last steps.
    rng: the key of the initial rows.
  """
  rows: Rows
  classes: jax.Array
  renewed: jax.Array
  outside: Recent | DeviceStore
  clock: Clock
  rng: jax.Array


def init(rng: jax.Array, classes: np.ndarray, num_instances: int, dim: int, norm: float, batch_size: int,
         mesh: Mesh, on_device: bool) -> Window:
  """The window before the first step.

  Args:
    rng: a key; row n starts as `initial_rows(rng, n)`.
    classes: int [N′], the first window's, by slot.
    num_instances: N.
    dim: D.
    norm: the norm of the initial rows.
    batch_size: B.
    mesh: the mesh that rows are split over.
    on_device: whether the rows outside the window are on the device too.
  """
  chex.assert_rank(classes, 1)
  padded = padded_rows(len(classes), mesh.size)
  weights = initial_rows(rng, jnp.pad(jnp.asarray(classes, jnp.int32), (0, padded - len(classes))), dim, norm)
  if on_device:
    everyone = init_rows(rng, num_instances, dim, norm, mesh.size)
    outside = DeviceStore(jnp.stack([everyone.weights, everyone.momentum], axis=1),
                          jnp.zeros(len(everyone.weights), jnp.int32))
  else:
    outside = Recent(jnp.zeros((HOST_LAG, batch_size, 2, dim)))
  clock = Clock(jnp.int32(0), jnp.float32(0), jnp.tile(jnp.eye(2), (HOST_LAG, 1, 1)))
  return Window(Rows(weights, jnp.zeros_like(weights)), jnp.asarray(classes, jnp.int32),
                jnp.full(len(classes), NEVER_RENEWED, jnp.int32), outside, clock, rng)


def partition_rules(mesh: Mesh, on_device: bool) -> tuple[tuple[str, PartitionSpec], ...]:
  """Partition rules of a `Window`: its rows and the device's store are split, the rest is replicated."""
  rules = ((r'(^|/)rows/(weights|momentum)$', split(mesh)),)
  return (*rules, (r'(^|/)outside/(rows|seen)$', split(mesh))) if on_device else rules


def inputs(batch_size: int, dim: int, mesh: Mesh, on_device: bool) -> dict[str, jax.ShapeDtypeStruct]:
  """The host inputs of `exchange` in each step; every first axis is split over the mesh.

  slots: int32 [B], the slot of each image's class.
  swapped: int32 [B], the slot of each swap; `NO_SLOT` for unused ones.
  entering: int32 [B], the class that enters there.

  The others have one part per device: the process that stores a row describes it in the part of one of its
  devices, all else is zero, and the devices sum the parts.

  origin: int32 [T, B], `OUTSIDE`, `FRESH` or `RECENT` + index.
  missing: int32 [T, B], how many of the last steps `products` does not cover yet.
  products: float32 [T, B, 2, 2], P from the step the row left to `missing` steps ago.
  rows: float32 [T, B, 2, D], from the host's store; absent if the rows are on the device.
  """
  known = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
  parts = jax.ShapeDtypeStruct((mesh.size, batch_size), jnp.int32)
  of_shape = lambda *shape: jax.ShapeDtypeStruct((mesh.size, batch_size, *shape), jnp.float32)
  shapes = {'slots': known, 'swapped': known, 'entering': known, 'origin': parts, 'missing': parts,
            'products': of_shape(2, 2)}
  return shapes if on_device else {**shapes, 'rows': of_shape(2, dim)}


def exchange(window: Window, inputs: dict[str, jax.Array], step: jax.Array, updates: jax.Array,
             lr: jax.Array, *, sgd: RowsSgd, mesh: Mesh) -> tuple[Window, dict[str, jax.Array]]:
  """Swaps rows between the window and the store outside, before the loss of a step.

  Runs even in a step that float16 then skips.

  Args:
    window: the window before the step.
    inputs: as `inputs` describes.
    step: int32 [], t.
    updates: int32 [], updates applied so far.
    lr: float32 [], the rows' learning rate in this step, `sgd.lr_scale` times the encoder's.
    sgd: settings of the rows' SGD.
    mesh: the mesh.

  Returns:
    The window, and for the host {'rate': float32 [], the learning rate of the previous step, NaN if it was
    skipped}; if the rows are on the host also 'rows' float32 [B, 2, D], the row evicted in each swap, exact
    before the update of this step.
  """
  chex.assert_rank([step, updates, lr], 0)
  rate = jnp.where(updates > window.clock.updates, window.clock.lr, jnp.nan)
  decay = delayed.matrix(rate, momentum=sgd.momentum, weight_decay=sgd.weight_decay)
  decays = jnp.concatenate([window.clock.decays[1:], decay[None]])
  outgoing = {'rate': rate}

  over, everywhere = split(mesh), PartitionSpec()
  stored = over if isinstance(window.outside, DeviceStore) else everywhere
  specs = dataclasses.replace(window, rows=over, classes=everywhere, renewed=everywhere, outside=stored,
                              clock=everywhere, rng=everywhere)
  move = functools.partial(_move, norm=sgd.norm, mesh=mesh)
  rows, outside, leaving = jax.shard_map(
    move, mesh=mesh, in_specs=(specs, over, everywhere, everywhere),
    out_specs=(over, stored, everywhere))(window, inputs, _products_of_last(decays), step)
  if isinstance(outside, Recent):
    # Read before writing; otherwise XLA copies the array.
    recent, leaving, rows = jax.lax.optimization_barrier((outside.rows, leaving, rows))
    outside = Recent(recent.at[step % HOST_LAG].set(leaving))
    outgoing['rows'] = leaving
  classes = window.classes.at[inputs['swapped']].set(inputs['entering'], mode='drop')
  renewed = window.renewed.at[inputs['slots']].set(step)
  return Window(rows, classes, renewed, outside, Clock(updates, lr, decays), window.rng), outgoing


def _move(window, inputs, recent_products, step, *, norm, mesh):
  """One device's part of the swap: (its rows, the store outside, all evicted rows [B, 2, D])."""
  rows, outside = window.rows, window.outside
  axes = mesh.axis_names
  swapped, entering = (jax.lax.all_gather(inputs[name], axes, tiled=True) for name in ('swapped', 'entering'))
  origin, missing, products = (jax.lax.psum(inputs[name][0], axes)
                               for name in ('origin', 'missing', 'products'))
  inside = _places(swapped, rows.weights, mesh)
  mine = [local_rows.take(part, inside) for part in (rows.weights, rows.momentum)]
  leaving = jax.lax.psum(jnp.stack(mine, axis=1), axes)

  if isinstance(outside, DeviceStore):
    arriving = jax.lax.psum(local_rows.take(outside.rows, _places(entering, outside.rows, mesh)), axes)
  else:
    drawn = initial_rows(window.rng, entering, leaving.shape[-1], norm)
    drawn = jnp.stack([drawn, jnp.zeros_like(drawn)], axis=1)
    recent = outside.rows.reshape(-1, *leaving.shape[1:])[jnp.maximum(origin - RECENT, 0)]
    kind = origin[:, None, None]
    arriving = jnp.where(kind == OUTSIDE, jax.lax.psum(inputs['rows'][0], axes),
                         jnp.where(kind == FRESH, drawn, recent))
  delay = jnp.einsum('kij,kjl->kil', recent_products[missing], products, precision=jax.lax.Precision.HIGHEST)
  arriving = delayed.apply(delay, arriving)

  # Read before writing, as in `exchange`.
  rows, store, stored, arriving = jax.lax.optimization_barrier((rows, outside, leaving, arriving))
  rows = Rows(rows.weights.at[inside].set(arriving[:, 0], mode='drop'),
                          rows.momentum.at[inside].set(arriving[:, 1], mode='drop'))
  if isinstance(store, DeviceStore):
    names = jnp.where(swapped == NO_SLOT, NO_SLOT, window.classes.at[swapped].get(mode='clip'))
    place = _places(names, store.rows, mesh)
    outside = DeviceStore(store.rows.at[place].set(stored, mode='drop'),
                          store.seen.at[place].set(step, mode='drop'))
  return rows, outside, leaving


def _products_of_last(decays: jax.Array) -> jax.Array:
  """The product of the last k of A₁ … A_R, the latest on the left, for k = 0 … R: float32 [R + 1, 2, 2]."""
  products = [jnp.eye(2)]
  for decay in decays[::-1]:
    products.append(jnp.matmul(products[-1], decay, precision=jax.lax.Precision.HIGHEST))
  return jnp.stack(products)


def _places(indices: jax.Array, rows: jax.Array, mesh: Mesh) -> jax.Array:
  """Local positions of global rows; past the last local row for those on other devices."""
  return local_rows.local_places(indices, local_rows.first_row(len(rows), mesh), len(rows))
