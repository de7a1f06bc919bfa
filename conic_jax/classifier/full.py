"""The full instance softmax, split by classes over every device of the mesh.

Features are gathered (M × D is small), the rows never are. `scores` gives the loss and the
gradient of the features in one pass; `update` recomputes the probabilities from the saved
normalisers, forms the gradient of the rows and applies momentum SGD to them where they lie.
`losses.instance_classification` with optax's SGD is the readable form it is tested against.
"""
import functools
import math
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax.losses import normalise
from conic_jax.mesh import split

# Cosines are at most 1, so that 1/τ may stand for the largest logit as long as e^{−2/τ}, the
# smallest term, is a normal float32.
SMALLEST_TEMPERATURE_FOR_CONSTANT_MAXIMUM = 0.023

_PADDED_TO = 1024


@flax.struct.dataclass
class Rows:
  """The classifier and the state of its SGD.

  Attributes:
    weights: float32 [N', D], N' is N rounded up, the same for all usual numbers of devices, so that
      a run can go on with another number.
    momentum: float32 [N', D].
  """
  weights: jax.Array
  momentum: jax.Array


class Scores(NamedTuple):
  """What `scores` gives for each of the M features, all [M].

  Attributes:
    loss: −log P(own class), differentiable in the features.
    correct: bool, whether the own class has the largest logit.
    log_normaliser: log Σⱼ e^{w̄ⱼᵀx̄/τ}.
  """
  loss: jax.Array
  correct: jax.Array
  log_normaliser: jax.Array


def init(rng: jax.Array, num_instances: int, dim: int, norm: float, num_shards: int) -> Rows:
  """Rows of random direction and equal norm, with zero momentum.

  Row n is a function of (rng, n) only, not of N or the mesh.

  Args:
    rng: a key.
    num_instances: N.
    dim: D.
    norm: the norm that the rows start with; the gradient of a row's direction goes as 1/norm.
    num_shards: devices that share the rows.
  """
  unit = math.lcm(num_shards, _PADDED_TO if num_instances >= 64 * _PADDED_TO else 64)
  padded = -(-num_instances // unit) * unit
  draw = lambda n: jax.random.normal(jax.random.fold_in(rng, n), (dim,))
  weights = norm * normalise(jax.vmap(draw)(jnp.arange(padded)))
  return Rows(weights, jnp.zeros_like(weights))


def _product(a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """a @ b with factors in the compute type and sums in float32."""
  precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
  return jnp.matmul(a.astype(dtype), b.astype(dtype), precision=precision,
                    preferred_element_type=jnp.float32)


def _gradient_dtype(dtype: jnp.dtype) -> jnp.dtype:
  """float32 for float16, whose smallest number is larger than many a probability."""
  return jnp.float32 if dtype == jnp.float16 else dtype


def _local_classes(num_rows: int, mesh: Mesh) -> jax.Array:
  """The ids of the rows that lie on this device: int32 [num_rows]."""
  return jax.lax.axis_index(mesh.axis_names) * num_rows + jnp.arange(num_rows, dtype=jnp.int32)


def _local_logits(features: jax.Array, unit_rows: jax.Array, classes: jax.Array,
                  num_instances: int, temperature: float, dtype: jnp.dtype) -> jax.Array:
  """x̄ᵀw̄/τ of all features and this device's rows, −inf for the rows that only pad."""
  logits = _product(features, unit_rows.T, dtype) / temperature
  return jnp.where(classes[None] < num_instances, logits, -jnp.inf)


def _rows_of(ids: jax.Array, unit_rows: jax.Array, classes: jax.Array) -> jax.Array:
  """The rows [M, D] of these ids, zero where another device holds them."""
  place = ids - classes[0]
  here = (place >= 0) & (place < len(classes))
  return jnp.where(here[:, None], unit_rows[jnp.where(here, place, 0)], 0)


def scores(weights: jax.Array, features: jax.Array, ids: jax.Array, *, num_instances: int,
           temperature: float, mesh: Mesh, dtype: jnp.dtype = jnp.float32) -> Scores:
  """The instance classification loss of each feature over all N classes.

  ℓ = log Σⱼ e^{w̄ⱼᵀx̄/τ} − w̄ₙᵀx̄/τ,  ∂ℓ/∂x̄ = (Σⱼ Pⱼ w̄ⱼ − w̄ₙ)/τ

  The rows get no gradient here: that is `update`'s.

  Args:
    weights: float32 [N', D], split over the mesh, normalised here.
    features: float32 [M, D] of unit norm, split over the mesh.
    ids: int32 [M], the instance of each feature, in [0, N).
    num_instances: N.
    temperature: τ.
    mesh: the mesh.
    dtype: the type of the factors of the products; sums are float32.

  Source: ConIC, Eq. 1 and 4; One-Million, the hybrid parallel classifier.
  """
  axes = mesh.axis_names
  gather = functools.partial(jax.lax.all_gather, axis_name=axes, tiled=True)
  scatter_sum = functools.partial(jax.lax.psum_scatter, axis_name=axes, tiled=True)

  def local(weights, features, ids):
    everyone, everyones_ids = gather(features), gather(ids)
    unit_rows = normalise(weights)
    classes = _local_classes(len(weights), mesh)
    logits = _local_logits(everyone, unit_rows, classes, num_instances, temperature, dtype)
    largest = jax.lax.pmax(logits.max(axis=1), axes)
    shift = largest
    if temperature >= SMALLEST_TEMPERATURE_FOR_CONSTANT_MAXIMUM:
      shift = jnp.full_like(largest, 1 / temperature)
    exponentials = jnp.exp(logits - shift[:, None])
    own = classes[None] == everyones_ids[:, None]

    total = scatter_sum(exponentials.sum(axis=1))
    weighted = scatter_sum(_product(exponentials, unit_rows, _gradient_dtype(dtype)))
    own_logit = scatter_sum(jnp.where(own, logits, 0).sum(axis=1))
    own_row = scatter_sum(_rows_of(everyones_ids, unit_rows, classes))

    start = jax.lax.axis_index(axes) * len(features)
    here = lambda values: jax.lax.dynamic_slice_in_dim(values, start, len(features))
    log_normaliser = jnp.log(total) + here(shift)
    gradient = (weighted / total[:, None] - own_row) / temperature
    return log_normaliser - own_logit, own_logit >= here(largest), log_normaliser, gradient

  spec = split(mesh)
  outputs = jax.shard_map(local, mesh=mesh, in_specs=(spec, spec, spec), out_specs=(spec,) * 4)(
    *jax.lax.stop_gradient((weights, features, ids)))
  loss, correct, log_normaliser, gradient = outputs
  # The gradient is known already: a term of value zero hands it to autodiff.
  first_order = jnp.sum(gradient * (features - jax.lax.stop_gradient(features)), axis=1)
  return Scores(loss + first_order, correct, log_normaliser)


def update(rows: Rows, features: jax.Array, ids: jax.Array, sample_weights: jax.Array,
           log_normaliser: jax.Array, lr: jax.Array, *, num_instances: int, temperature: float,
           momentum: float, weight_decay: float, mesh: Mesh,
           dtype: jnp.dtype = jnp.float32) -> Rows:
  """One step of momentum SGD with weight decay on every row.

  ∂L/∂w̄ⱼ = Σₘ aₘ (Pₘⱼ − [j = yₘ]) x̄ₘ/τ,  g = (I − w̄w̄ᵀ) ∂L/∂w̄ / ‖w‖ + λw,  v ← mv + g,  w ← w − ηv

  Args:
    rows: the rows before the step, split over the mesh.
    features, ids, log_normaliser: as `scores` took and gave them, [M, D], [M], [M].
    sample_weights: float32 [M], aₘ: the weight of each feature in the mean that is the loss.
    lr: η, float32 [].
    num_instances, temperature, mesh, dtype: as for `scores`.
    momentum: m.
    weight_decay: λ.

  Source: ConIC §3.2, whose ∂ℓ/∂w leaves out the 1/τ and the projection.
  """
  gather = functools.partial(jax.lax.all_gather, axis_name=mesh.axis_names, tiled=True)

  def local(weights, velocity, features, ids, sample_weights, log_normaliser, lr):
    features, ids, sample_weights, log_normaliser = map(
      gather, (features, ids, sample_weights, log_normaliser))
    norms = jnp.linalg.norm(weights, axis=1, keepdims=True)
    unit_rows = normalise(weights)
    classes = _local_classes(len(weights), mesh)
    logits = _local_logits(features, unit_rows, classes, num_instances, temperature, dtype)
    probabilities = jnp.exp(logits - log_normaliser[:, None])
    errors = probabilities - (classes[None] == ids[:, None])
    gradient = _product(errors.T, features * (sample_weights / temperature)[:, None],
                        _gradient_dtype(dtype))
    radial = jnp.sum(gradient * unit_rows, axis=1, keepdims=True)
    gradient = (gradient - radial * unit_rows) / jnp.maximum(norms, 1e-6)
    velocity = momentum * velocity + gradient + weight_decay * weights
    return weights - lr * velocity, velocity

  spec, everywhere = split(mesh), jax.sharding.PartitionSpec()
  weights, velocity = jax.shard_map(
    local, mesh=mesh, in_specs=(spec,) * 6 + (everywhere,), out_specs=(spec, spec))(
    rows.weights, rows.momentum, features, ids, sample_weights, log_normaliser, lr)
  return Rows(weights, velocity)
