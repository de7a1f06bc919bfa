"""The rows' SGD as Pallas kernels, which keep the logits on the chip, as `losses.fused_negatives` does.

Each block of rows is read once, its probabilities are recomputed from the saved normalisers, and the new rows
and velocities are written in place. The plain form is the loop in `instance_rows.update`.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

from conic_jax.losses import fused_negatives, products

# At D = 128, as many rows as leave the gradient, the rows and the velocities in a multiprocessor's registers.
_TRITON_ELEMENTS, _TRITON_FEATURES = 2 ** 14, 64
_SMALLEST_NORM = 1e-6


class Queries(NamedTuple):
  """The M features of a step, all of them on every device.

  Attributes:
    features: [M, D] in the compute type, divided by τ.
    places: int32 [M], the row of each feature's own class.
    log_normaliser: float32 [M], log Z − log β.
    sample_weights: float32 [M], aₘ.
    own_error: float32 [M], aₘ ∂ℓ/∂(own logit).
  """
  features: jax.Array
  places: jax.Array
  log_normaliser: jax.Array
  sample_weights: jax.Array
  own_error: jax.Array


class Sgd(NamedTuple):
  """One step: v ← mv + g, w ← w − ηv, where g includes λw.

  Attributes:
    lr: float32 [], η.
    applied: bool [], False if nothing may change.
    momentum: m; weight_decay: λ.
  """
  lr: jax.Array
  applied: jax.Array
  momentum: float
  weight_decay: float


def triton(weights: jax.Array, velocity: jax.Array, queries: Queries, bias: jax.Array, sgd: Sgd,
           interpret: bool = False) -> tuple[jax.Array, jax.Array]:
  """The rows and velocities of one device after a step, on a GPU.

  Args:
    weights, velocity: float32 [n, D]; D is a power of two, at least 16.
    queries: the features.
    bias: float32 [n], added to each class's logits: 0, or −∞ for a class that is no negative.
    sgd: the step.
    interpret: runs as plain JAX.
  """
  (num_rows, dim), dtype = weights.shape, queries.features.dtype
  queries = Queries(*(fused_negatives.pad(x, _TRITON_FEATURES) for x in queries))
  size = max(min(128, _TRITON_ELEMENTS // dim), 16)

  def kernel(weights, velocity, *inputs):
    *queries, bias, scalars, new_weights, new_velocity = inputs
    start = pl.program_id(0) * size
    classes = start + jnp.arange(size, dtype=jnp.int32)
    rows, inside = pl.ds(start, size), classes < num_rows
    biases = plgpu.load(bias.at[rows], mask=inside, other=-jnp.inf)[:, None]
    old = plgpu.load(weights.at[rows, :], mask=inside[:, None], other=0.0)
    inverse = _inverse_norm(old)
    keys = (old * inverse).astype(dtype)

    def block(index, gradient):
      here = pl.ds(index * _TRITON_FEATURES, _TRITON_FEATURES)
      features, *others = (x[here] if x.ndim == 1 else x[here, :] for x in queries)
      logits = products.contract(keys, features, (1, 1), dtype) + biases
      errors = _errors(logits, classes[:, None], *(x[None] for x in others))
      return gradient + products.sum_products(errors, features, dtype)

    gradient = jax.lax.fori_loop(0, len(queries[0]) // _TRITON_FEATURES, block, jnp.zeros((size, dim)))
    old_velocity = plgpu.load(velocity.at[rows, :], mask=inside[:, None], other=0.0)
    after = _step(old, old_velocity, gradient, inverse, scalars[0], sgd)
    # A step that is not applied writes nothing, as the results are the operands' memory.
    for ref, value in zip((new_weights, new_velocity), after):
      plgpu.store(ref.at[rows, :], value, mask=inside[:, None] & (scalars[1] > 0))

  cost = _cost(weights, queries.features, feature_reads=1)  # They stay in the GPU's cache.
  whole = lambda x: pl.BlockSpec(x.shape, lambda i: (0,) * x.ndim)
  inputs = (weights, velocity, *queries, bias, _scalars(sgd))
  return pl.pallas_call(
    kernel, grid=(pl.cdiv(num_rows, size),), name='rows_sgd', interpret=interpret,
    in_specs=list(map(whole, inputs)), out_specs=[whole(weights)] * 2,
    out_shape=[jax.ShapeDtypeStruct(weights.shape, jnp.float32)] * 2, input_output_aliases={0: 0, 1: 1},
    cost_estimate=cost, metadata=fused_negatives.as_metadata(cost),
    compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=3))(*inputs)


def mosaic(weights: jax.Array, velocity: jax.Array, queries: Queries, bias: jax.Array, sgd: Sgd,
           interpret: bool = False) -> tuple[jax.Array, jax.Array]:
  """The same on a TPU, for any D."""
  (num_rows, dim), dtype = weights.shape, queries.features.dtype
  features_in_block = fused_negatives.mosaic_features(*queries.features.shape)
  features, *others = (fused_negatives.pad(x, features_in_block) for x in queries)
  size = fused_negatives.mosaic_classes(num_rows, dim)

  def kernel(scalars, weights, velocity, features, *inputs):
    *others, bias, new_weights, new_velocity, gradient = inputs
    block = pl.program_id(1)

    @pl.when(block == 0)
    def _():
      gradient[...] = jnp.zeros_like(gradient)

    # Rows that the last block has past the end stay apart from the others, and are not written.
    classes, old = fused_negatives.block_classes(pl.program_id(0), size), weights[...]
    inverse = _inverse_norm(old)
    logits = products.contract(old * inverse, features[...], (1, 1), dtype) + bias[...].T
    errors = _errors(logits, classes, *(x[...] for x in others))
    gradient[...] += products.sum_products(errors, features[...], dtype)

    @pl.when(block == pl.num_programs(1) - 1)
    def _():
      stepped, moved = _step(old, velocity[...], gradient[...], inverse, scalars[0, 0], sgd)
      new_weights[...] = jnp.where(scalars[0, 1] > 0, stepped, old)
      new_velocity[...] = jnp.where(scalars[0, 1] > 0, moved, velocity[...])

  rows = pl.BlockSpec((size, dim), lambda i, j: (i, 0))
  by_feature = pl.BlockSpec((1, features_in_block), lambda i, j: (0, j))
  return pl.pallas_call(
    kernel, grid=(pl.cdiv(num_rows, size), len(features) // features_in_block), name='rows_sgd',
    interpret=interpret,
    in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), rows, rows,
              pl.BlockSpec((features_in_block, dim), lambda i, j: (j, 0)), *[by_feature] * 4,
              pl.BlockSpec((1, size), lambda i, j: (0, i))],
    # A single block of features stays on the chip, several are read for each block of rows.
    cost_estimate=_cost(weights, features, 1 if len(features) == features_in_block
                        else pl.cdiv(num_rows, size)),
    out_specs=[rows, rows], out_shape=[jax.ShapeDtypeStruct(weights.shape, jnp.float32)] * 2,
    scratch_shapes=[pltpu.VMEM((size, dim), jnp.float32)], input_output_aliases={1: 0, 2: 1},
    compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary')))(
    _scalars(sgd)[None], weights, velocity, features, *(x[None] for x in others), bias[None])


def _cost(weights, features, feature_reads):
  """Two products; rows and velocities are read and written once."""
  (num_rows, dim), count = weights.shape, len(features)
  return pl.CostEstimate(
    flops=4 * count * num_rows * dim, transcendentals=count * num_rows,
    bytes_accessed=(4 * num_rows * (4 * dim + 1)
                    + feature_reads * count * (dim * features.dtype.itemsize + 16)))


def _scalars(sgd):
  return jnp.stack([sgd.lr, sgd.applied.astype(jnp.float32)])


def _inverse_norm(rows):
  return jax.lax.rsqrt(jnp.maximum(jnp.sum(rows * rows, axis=1, keepdims=True), _SMALLEST_NORM ** 2))


def _errors(logits, classes, places, log_normaliser, sample_weights, own_error):
  """aₘ ∂ℓₘ/∂logit [classes, features]; `classes` is a column, the others are rows."""
  errors = fused_negatives.exponential(logits - log_normaliser) * sample_weights
  return jnp.where(classes == places, own_error, errors)


def _step(old, old_velocity, gradient, inverse, lr, sgd):
  """Rows and velocities after the step, from the gradient of the unit rows."""
  radial = jnp.sum(gradient * old, axis=1, keepdims=True) * inverse ** 2
  # (I − w̄w̄ᵀ) g / ‖w‖ + λw, gathered by its arrays, so that registers suffice.
  velocity = (sgd.momentum * old_velocity + inverse * gradient
              + (sgd.weight_decay - radial * inverse) * old)
  return old - lr * velocity, velocity
