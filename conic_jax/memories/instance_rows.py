"""The instance classifier's rows, one per image, with their own SGD.

`update` goes through the local rows in chunks as `losses.partitioned.scores` does: it recomputes the
probabilities from the saved normalisers, computes the gradient of each chunk and applies momentum SGD in
place. No gradient [N, D] is ever stored.
"""
import dataclasses
import functools
import math
from typing import NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from conic_jax.hardware import local_rows
from conic_jax.hardware.mesh import split
from conic_jax.losses import normalise, partitioned, products, smoothing
from conic_jax.memories.memory import Memory

_PADDED_TO = 1024
_SMALLEST_NORM = 1e-6


@flax.struct.dataclass
class Rows:
  """The classifier and the state of its SGD.

  Attributes:
    weights: float32 [N', D]; N' is N rounded up, the same for all usual numbers of devices, so that a run can
      resume on another number.
    momentum: float32 [N', D].
  """
  weights: jax.Array
  momentum: jax.Array


class Classified(NamedTuple):
  """Inputs to the rows' SGD: M features of the B images of a batch, image-major.

  Attributes:
    features: float32 [M, D], of unit norm.
    ids: int32 [M].
    sample_weights: float32 [M], aₘ: the weight of each feature in the loss, which is a mean.
    scores: the `Scores` of the features.
    hardest: int32 [B, K]; None without label smoothing.
    draw_key: the key of the drawn negatives; None if none are drawn.
  """
  features: jax.Array
  ids: jax.Array
  sample_weights: jax.Array
  scores: partitioned.Scores
  hardest: jax.Array | None = None
  draw_key: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class RowsSgd:
  """Settings of the rows' SGD, the fields of `config.classifier`.

  Attributes:
    norm: the norm of the initial rows.
    lr_scale: the rows' learning rate as a multiple of the encoder's.
    momentum, weight_decay: of the rows' SGD.
  """
  norm: float
  lr_scale: float
  momentum: float
  weight_decay: float


@dataclasses.dataclass(frozen=True)
class InstanceRows(Memory):
  """Rows of all N instances, split over the mesh. The loss passes a `Classified`.

  Attributes:
    num_instances: N; dim: D.
    softmax: as for `partitioned.scores`.
    sgd: settings of the rows' SGD.
  """
  num_instances: int
  dim: int
  softmax: partitioned.Softmax
  sgd: RowsSgd

  def init(self, rng: jax.Array) -> 'Rows':
    """The rows before the first step."""
    return init(rng, self.num_instances, self.dim, self.sgd.norm, self.softmax.mesh.size)

  def update(self, state, seen, params, step, lr, applied):
    return learn(state, seen, lr, self.softmax, self.sgd, applied)

  def partition_rules(self):
    return (('', split(self.softmax.mesh)),)


def learn(rows: Rows, seen: Classified, lr: jax.Array, softmax: partitioned.Softmax, sgd: RowsSgd,
          applied: jax.Array) -> Rows:
  """`update` by the settings of the rows' SGD; `lr` is the encoder's."""
  return update(rows, seen, lr * sgd.lr_scale, softmax, momentum=sgd.momentum, weight_decay=sgd.weight_decay,
                applied=applied)


def initial_rows(rng: jax.Array, ids: jax.Array, dim: int, norm: float) -> jax.Array:
  """Initial rows: random directions of equal norm; each depends on (rng, id) alone.

  Args:
    rng: a key.
    ids: int32 [k].
    dim: D.
    norm: the norm of the rows; the gradient of a row's direction scales as 1/norm.

  Returns:
    float32 [k, D].
  """
  normal = lambda n: jax.random.normal(jax.random.fold_in(rng, n), (dim,))
  return norm * normalise(jax.vmap(normal)(ids))


def init(rng: jax.Array, num_instances: int, dim: int, norm: float, num_shards: int) -> Rows:
  """The rows of `initial_rows` with zero momentum, padded so that `num_shards` devices can share them."""
  padded = padded_rows(num_instances, num_shards)
  weights = initial_rows(rng, jnp.arange(padded), dim, norm)
  return Rows(weights, jnp.zeros_like(weights))


def padded_rows(num_instances: int, num_shards: int) -> int:
  """N', the number of rows of an array that `num_shards` devices share evenly."""
  unit = math.lcm(num_shards, _PADDED_TO if num_instances >= 64 * _PADDED_TO else 64)
  return -(-num_instances // unit) * unit


def update(rows: Rows, batch: Classified, lr: jax.Array, softmax: partitioned.Softmax, *, momentum: float,
           weight_decay: float, applied: jax.typing.ArrayLike = True) -> Rows:
  """One step of momentum SGD with weight decay on every row.

  ∂L/∂w̄ⱼ = Σₘ aₘ (Pₘⱼ − qₘⱼ) x̄ₘ/τ,  g = (I − w̄w̄ᵀ) ∂L/∂w̄ / ‖w‖ + λw,  v ← mv + g,  w ← w − ηv

  Args:
    rows: the rows before the step, split over the mesh.
    batch: the features and their `scores`.
    lr: η, float32 [].
    softmax: as for `scores`.
    momentum: m.
    weight_decay: λ.
    applied: bool [], False for a step that a float16 overflow skips: then nothing changes.

  Source: ConIC §3.2, whose ∂ℓ/∂w omits the 1/τ and the projection.
  """
  chex.assert_rank([batch.features, batch.ids, batch.sample_weights, lr], [2, 1, 1, 0])
  chex.assert_equal_shape_prefix([batch.features, batch.ids, batch.sample_weights], 1)
  mesh, temperature, dtype = softmax.mesh, softmax.temperature, softmax.dtype
  gather = functools.partial(jax.lax.all_gather, axis_name=mesh.axis_names, tiled=True)

  def local(weights, velocity, batch, draw_key, lr, applied):
    batch = jax.tree.map(gather, batch)
    features, result = batch.features, batch.scores
    first = local_rows.first_row(len(weights), mesh)
    coefficients = batch.sample_weights / temperature
    keep = momentum
    if batch.hardest is not None:
      if momentum == 0:
        velocity, keep = jnp.where(applied, 0, velocity), 1.0
      pull = smoothing.Pull(features, coefficients * softmax.smoothing, batch.hardest, result.log_target,
                            applied)
      velocity = smoothing.pull_hardest(weights, velocity, pull, first, temperature, 1 / keep)
    if partitioned.kernel(weights.shape[1], softmax) != 'xla':
      return _fused(weights, velocity, batch, draw_key, lr, applied, keep, weight_decay, softmax)

    def chunk(index, carry):
      weights, velocity = carry
      start, present = partitioned.chunk_bounds(index, len(weights), size, first, softmax.num_instances)
      classes = first + start + jnp.arange(size, dtype=jnp.int32)
      old, old_velocity = (jax.lax.dynamic_slice_in_dim(x, start, size) for x in carry)
      inverse = jax.lax.rsqrt(jnp.maximum(jnp.sum(old * old, axis=1, keepdims=True), _SMALLEST_NORM ** 2))
      # In float32 normalised after the product, which is cheaper; narrower types may not hold unnormalised
      # rows.
      if dtype == jnp.float32:
        logits = products.contract(old, features / temperature, (1, 1), dtype) * inverse
      else:
        logits = products.contract(old * inverse, features / temperature, (1, 1), dtype)
      own = classes[:, None] == batch.ids[None]
      weight = partitioned.class_weights(classes, own, present, draw_key, softmax)
      errors = jnp.exp(logits - result.log_normaliser[None]) * weight[:, None]
      errors = jnp.where(own, result.own_error[None], errors)
      if dtype == jnp.float16:
        gradient = products.sum_products(errors * coefficients[None], features, dtype)
      else:
        gradient = products.sum_products(errors, features * coefficients[:, None], dtype)
      radial = jnp.sum(gradient * old, axis=1, keepdims=True) * inverse ** 2
      new_velocity = keep * old_velocity + (gradient - radial * old) * inverse + weight_decay * old
      here = applied & partitioned.in_turn(index, start, size)[:, None]
      new_velocity = jnp.where(here, new_velocity, old_velocity)
      velocity = jax.lax.dynamic_update_slice_in_dim(velocity, new_velocity, start, 0)
      # Read back, so that the rows are written after all reads of them; otherwise XLA copies them all.
      weights, velocity = jax.lax.optimization_barrier((weights, velocity))
      old = jax.lax.dynamic_slice_in_dim(weights, start, size)
      new = jnp.where(here, old - lr * jax.lax.dynamic_slice_in_dim(velocity, start, size), old)
      return jax.lax.dynamic_update_slice_in_dim(weights, new, start, 0), velocity

    size = partitioned.chunk_size(len(features), len(weights), softmax)
    return jax.lax.fori_loop(0, -(-len(weights) // size), chunk, (weights, velocity))

  spec, everywhere = split(mesh), PartitionSpec()
  weights, velocity = jax.shard_map(
    local, mesh=mesh, in_specs=(spec, spec, spec, everywhere, everywhere, everywhere),
    out_specs=(spec, spec), check_vma=partitioned.kernel(rows.weights.shape[1], softmax) == 'xla')(
    rows.weights, rows.momentum, batch._replace(draw_key=None), batch.draw_key, lr, jnp.asarray(applied))
  return Rows(weights, velocity)


def _fused(weights, velocity, batch, draw_key, lr, applied, momentum, weight_decay, softmax):
  """The loop of `update` over this device's rows as a kernel."""
  from conic_jax.memories import fused_sgd  # Takes a while, and needs an accelerator.
  first = local_rows.first_row(len(weights), softmax.mesh)
  places = local_rows.local_places(batch.ids, first, len(weights))
  bias = partitioned.class_bias(places, first, len(weights), draw_key, softmax)
  log_normaliser = batch.scores.log_normaliser - jnp.log(jnp.float32(softmax.negative_weight))
  queries = fused_sgd.Queries(
    (batch.features / softmax.temperature).astype(softmax.dtype), places, log_normaliser,
    batch.sample_weights, batch.sample_weights * batch.scores.own_error)
  run = getattr(fused_sgd, partitioned.kernel(weights.shape[1], softmax))
  return run(weights, velocity, queries, bias, fused_sgd.Sgd(lr, applied, momentum, weight_decay),
             partitioned.interpreted(softmax))


def write(rows: Rows, ids: jax.Array, values: jax.Array, valid: jax.Array, mesh: Mesh) -> Rows:
  """Sets the rows of these ids, with zero momentum.

  Args:
    rows: the rows, split over the mesh.
    ids: int32 [B], split over the mesh.
    values: float32 [B, D], split over the mesh.
    valid: bool [B]; if False, nothing is written.
    mesh: the mesh.
  """
  chex.assert_equal_shape([ids, valid])
  places = jnp.where(valid, ids, -1)
  return Rows(local_rows.write(rows.weights, places, values, mesh),
              local_rows.write(rows.momentum, places, jnp.zeros_like(values), mesh))
