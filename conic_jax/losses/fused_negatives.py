"""The softmax's sums over negatives as Pallas kernels, which keep the logits on the chip.

`triton` is for GPUs, where blocks run in parallel: each program goes through a part of the classes for a
block of features, and the parts are summed afterwards. JAX 0.11 has it still, and says that a later version
will not. `mosaic` is for TPUs, where blocks run in turn and add to the result. `partitioned._negatives_pass`
is the plain form. With 1,281,167 classes, 1,024 features and D = 128 in bfloat16, both passes' kernels read
and write 5.3 GB on an H100 by their blocks, where XLA's form moves 44.5 GB.
"""
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

from conic_jax.losses import normalise, products

# The most sums [features, D] that the 65,536 registers of a multiprocessor hold beside the logits.
_SUMS_IN_REGISTERS = 2 ** 15
_TRITON_CLASSES = 32
_LOG2_E = math.log2(math.e)
# Blocks of a TPU, at D = 128: their buffers take 6 of the 16 MiB that a kernel may have.
_MOSAIC_FEATURES, _MOSAIC_CLASSES = 1024, 512


class Sums(NamedTuple):
  """Sums over the negatives of each of the M features.

  Attributes:
    total: float32 [M], Σⱼ e^{logit − shift}.
    weighted: float32 [M, D], Σⱼ e^{logit − shift} w̄ⱼ.
    largest: float32 [M], the largest logit.
  """
  total: jax.Array
  weighted: jax.Array
  largest: jax.Array


def triton(weights: jax.Array, features: jax.Array, places: jax.Array, shift: jax.Array,
           bias: jax.Array, cores: int, interpret: bool = False) -> Sums:
  """The sums over one device's rows, on a GPU.

  Args:
    weights: float32 [n, D], normalised here; D is a power of two, at least 16.
    features: [M, D] in the compute type, divided by τ.
    places: int32 [M], the row of each feature's own class, which is left out.
    shift: float32 [M].
    bias: float32 [n], added to each class's logits: 0, or −∞ for a class that takes no part.
    cores: multiprocessors of the GPU, which share the classes.
    interpret: runs as plain JAX.
  """
  (num_rows, dim), dtype = weights.shape, features.dtype
  count, size = len(features), triton_features(*features.shape)
  features, places, shift = (pad(x, size) for x in (features, places, shift))
  feature_blocks, class_blocks = len(features) // size, pl.cdiv(num_rows, _TRITON_CLASSES)
  parts = min(max(cores // feature_blocks, 1), class_blocks)

  def kernel(weights, features, places, shift, bias, total, weighted, largest):
    part = pl.program_id(1)
    queries, own_places, shifts = features[...], places[...][:, None], shift[...][:, None]

    def block(index, sums):
      start = (part + index * parts) * _TRITON_CLASSES
      classes = start + jnp.arange(_TRITON_CLASSES, dtype=jnp.int32)
      rows, inside = pl.ds(start, _TRITON_CLASSES), classes < num_rows
      keys = normalise(plgpu.load(weights.at[rows, :], mask=inside[:, None], other=0.0)).astype(dtype)
      biases = plgpu.load(bias.at[rows], mask=inside, other=-jnp.inf)
      logits = products.contract(queries, keys, (1, 1), dtype) + biases[None]
      logits = jnp.where(classes[None] == own_places, -jnp.inf, logits)
      terms = exponential(logits - shifts)
      return (sums[0] + terms.sum(axis=1), sums[1] + products.sum_products(terms, keys, dtype),
              jnp.maximum(sums[2], logits.max(axis=1)))

    sums = jnp.zeros(size), jnp.zeros((size, dim)), jnp.full(size, -jnp.inf)
    turns = pl.cdiv(class_blocks - part, parts)
    total[...], weighted[...], largest[...] = jax.lax.fori_loop(0, turns, block, sums)

  cost = _cost(weights, features, row_reads=feature_blocks, parts=parts)
  whole = lambda x: pl.BlockSpec(x.shape, lambda i, j: (0,) * x.ndim)
  by_feature = pl.BlockSpec((size,), lambda i, j: (i,))
  by_part = pl.BlockSpec((None, size), lambda i, j: (j, i))
  total, weighted, largest = pl.pallas_call(
    kernel, grid=(feature_blocks, parts), name='negatives', interpret=interpret,
    in_specs=[whole(weights), pl.BlockSpec((size, dim), lambda i, j: (i, 0)), by_feature, by_feature,
              whole(bias)],
    out_specs=[by_part, pl.BlockSpec((None, size, dim), lambda i, j: (j, i, 0)), by_part],
    out_shape=[jax.ShapeDtypeStruct((parts, *shape), jnp.float32)
               for shape in (shift.shape, features.shape, shift.shape)],
    cost_estimate=cost, metadata=as_metadata(cost),
    compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=2))(
    weights, features, places, shift, bias)
  return Sums(total.sum(axis=0)[:count], weighted.sum(axis=0)[:count], largest.max(axis=0)[:count])


def mosaic(weights: jax.Array, features: jax.Array, places: jax.Array, shift: jax.Array,
           bias: jax.Array, interpret: bool = False) -> Sums:
  """The same on a TPU, for any D; logits are [classes, features]."""
  (num_rows, dim), dtype = weights.shape, features.dtype
  count, size = len(features), mosaic_features(*features.shape)
  features, places, shift = (pad(x, size) for x in (features, places, shift))
  classes_in_block = mosaic_classes(num_rows, dim)

  def kernel(weights, features, places, shift, bias, total, weighted, largest):
    block = pl.program_id(1)

    @pl.when(block == 0)
    def _():
      total[...], weighted[...] = jnp.zeros_like(total), jnp.zeros_like(weighted)
      largest[...] = jnp.full_like(largest, -jnp.inf)

    classes = block_classes(block, classes_in_block)
    inside = classes < num_rows  # The last block may reach further.
    keys = normalise(jnp.where(inside, weights[...], 0)).astype(dtype)
    logits = products.contract(keys, features[...], (1, 1), dtype) + jnp.where(inside, bias[...].T, -jnp.inf)
    logits = jnp.where(classes == places[...], -jnp.inf, logits)
    terms = exponential(logits - shift[...])
    total[...] += terms.sum(axis=0, keepdims=True)
    weighted[...] += products.contract(keys, terms, (0, 0), dtype)
    largest[...] = jnp.maximum(largest[...], logits.max(axis=0, keepdims=True))

  by_feature = pl.BlockSpec((1, size), lambda i, j: (0, i))
  total, weighted, largest = pl.pallas_call(
    kernel, grid=(len(features) // size, pl.cdiv(num_rows, classes_in_block)), name='negatives',
    interpret=interpret,
    in_specs=[pl.BlockSpec((classes_in_block, dim), lambda i, j: (j, 0)),
              pl.BlockSpec((size, dim), lambda i, j: (i, 0)), by_feature, by_feature,
              pl.BlockSpec((1, classes_in_block), lambda i, j: (0, j))],
    out_specs=[by_feature, pl.BlockSpec((dim, size), lambda i, j: (0, i)), by_feature],
    out_shape=[jax.ShapeDtypeStruct((rows, len(features)), jnp.float32) for rows in (1, dim, 1)],
    cost_estimate=_cost(weights, features, row_reads=len(features) // size, parts=1),
    compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary')))(
    weights, features, places[None], shift[None], bias[None])
  return Sums(total[0, :count], weighted.T[:count], largest[0, :count])


def _cost(weights, features, row_reads, parts):
  """Two products; every block of features reads all rows; features, read by each part, stay in a cache."""
  (num_rows, dim), count = weights.shape, len(features)
  return pl.CostEstimate(
    flops=4 * count * num_rows * dim, transcendentals=count * num_rows,
    bytes_accessed=(row_reads * 4 * num_rows * (dim + 1) + count * (dim * features.dtype.itemsize + 8)
                    + parts * 4 * count * (dim + 2)))


# ---- Shared with the rows' kernels ----------------------------------------------------------------


def triton_features(num_features: int, dim: int) -> int:
  """Features of a block on a GPU, a power of two."""
  return max(min(256, pl.next_power_of_2(num_features), _SUMS_IN_REGISTERS // dim), 16)


def mosaic_features(num_features: int, dim: int) -> int:
  """Features of a block on a TPU, whole registers of 128 lanes; fewer where they are long."""
  return min(_MOSAIC_FEATURES // pl.next_power_of_2(pl.cdiv(dim, 128)), pl.cdiv(num_features, 128) * 128)


def mosaic_classes(num_rows: int, dim: int) -> int:
  """Classes of a block on a TPU: all, or whole registers of 128 lanes."""
  return min(_MOSAIC_CLASSES // pl.next_power_of_2(pl.cdiv(dim, 128)), num_rows)


def as_metadata(cost: pl.CostEstimate) -> dict[str, str]:
  """A cost for the text of a compiled program, where that of a Triton kernel is missing."""
  return {'flops': str(cost.flops), 'bytes_accessed': str(cost.bytes_accessed)}


def pad(array: jax.Array, size: int) -> jax.Array:
  """Zeros after the last entry, up to a multiple of `size`."""
  return jnp.pad(array, [(0, -len(array) % size)] + [(0, 0)] * (array.ndim - 1))


def block_classes(block: jax.Array, size: int) -> jax.Array:
  """The rows of a block: int32 [size, 1]."""
  return block * size + jax.lax.broadcasted_iota(jnp.int32, (size, 1), 0)


def exponential(x: jax.Array) -> jax.Array:
  """eˣ as the power of two that the chip computes: two instructions of PTX, where Triton's eˣ takes nine."""
  return jnp.exp2(x * _LOG2_E)
