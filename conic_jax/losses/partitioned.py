"""The instance softmax over the rows of all classes, split over every device of the mesh.

Features are gathered (M × D is small), the rows never are. `scores` goes through the local rows in chunks and
gives the loss and the gradient of the features; `memories.instance_rows.update` goes through them again for
the rows' SGD. Logits [M, N] are never stored. `losses.instance_classification` is the readable reference that
tests compare it with.
"""
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from conic_jax.errors import UserError
from conic_jax.hardware import local_rows
from conic_jax.hardware.mesh import split
from conic_jax.losses import negatives, normalise, products, smoothing
from conic_jax.losses.known_gradient import with_gradient

# Cosines are at most 1, so 1/τ may stand in for the largest logit as long as e^{−2/τ}, the smallest term, is
# a normal float32.
SMALLEST_TEMPERATURE_FOR_CONSTANT_MAXIMUM = 0.023


@dataclasses.dataclass(frozen=True)
class Softmax:
  """Settings of the instance softmax.

  Attributes:
    num_instances: N.
    temperature: τ.
    mesh: the mesh that features and rows are split over.
    dtype: the type of the products' factors; sums are float32.
    negative_weight: β, the weight of each negative's term in the normaliser.
    num_drawn: negatives drawn uniformly in each step; 0 for all N − 1. The classes of the batch are always
      negatives of each other.
    smoothing: α, the total share of the label that the hardest classes have.
    chunk_size: rows scored at a time; 0 for a size that suits the device.
    kernel: 'xla', 'triton' or 'mosaic', as `kernel` chooses; '' for the one that suits the device.
  """
  num_instances: int
  temperature: float
  mesh: Mesh
  dtype: Any = jnp.float32
  negative_weight: float = 1.0
  num_drawn: int = 0
  smoothing: float = 0.0
  chunk_size: int = 0
  kernel: str = ''

  def __post_init__(self):
    if self.smoothing and self.temperature < SMALLEST_TEMPERATURE_FOR_CONSTANT_MAXIMUM:
      raise UserError(f'config.temperature is {self.temperature}: with smoothed labels it is at least '
                      f'{SMALLEST_TEMPERATURE_FOR_CONSTANT_MAXIMUM}, below which the terms of the hardest '
                      'classes may all be zero in float32; raise it or set config.smoothing.alpha to 0.')

  @property
  def chance_loss(self) -> float:
    """The loss if all logits are equal: log(1 + β n) for n negatives, in nats; above zero even for none."""
    return max(math.log1p(self.negative_weight * (self.num_drawn or self.num_instances - 1)), 1e-6)


class Scores(NamedTuple):
  """Result of `scores` for each of the M features, all [M].

  Attributes:
    loss: −log P(own class), differentiable in the features.
    correct: bool, whether no class has a larger logit than the own one: an exact tie counts as correct.
    log_normaliser: log Z.
    log_target: log Σⱼ yⱼ e^{w̄ⱼᵀx̄/τ}; the own logit without label smoothing.
    own_error: ∂ℓ/∂(own logit).
  """
  loss: jax.Array
  correct: jax.Array
  log_normaliser: jax.Array
  log_target: jax.Array
  own_error: jax.Array


def scores(weights: jax.Array, features: jax.Array, ids: jax.Array, softmax: Softmax,
           hardest: jax.Array | None = None, draw_key: jax.Array | None = None) -> Scores:
  """The instance classification loss of each feature over all N classes.

  Z = e^{w̄ₙᵀx̄/τ} + β Σ_{j≠n} e^{w̄ⱼᵀx̄/τ},  ℓ = log Z − log Σⱼ yⱼ e^{w̄ⱼᵀx̄/τ}
  ∂ℓ/∂x̄ = (Σⱼ Pⱼ w̄ⱼ − Σⱼ qⱼ w̄ⱼ)/τ with qⱼ = yⱼ e^{w̄ⱼᵀx̄/τ} / Σᵢ yᵢ e^{w̄ᵢᵀx̄/τ}

  y is one at the own class n; with label smoothing 1 − α there and α/K at the K hardest. The rows get no
  gradient here; `memories.instance_rows.update` computes it. An id outside [0, N) makes its loss NaN.

  Args:
    weights: float32 [N', D], split over the mesh, normalised here.
    features: float32 [M, D] of unit norm, split over the mesh.
    ids: int32 [M], the instance of each feature, in [0, N).
    softmax: the settings.
    hardest: int32 [B, K], the hardest classes of each image, split over the mesh; None without smoothing.
    draw_key: the key of the drawn negatives; None if none are drawn.

  Source: ConIC, Eq. 1 and 4, §4 (β); One-Million, Eq. 1 to 3, the hybrid parallel classifier.
  """
  chex.assert_rank([weights, features, ids], [2, 2, 1])
  chex.assert_equal_shape_prefix([features, ids], 1)
  axes, mesh, temperature = softmax.mesh.axis_names, softmax.mesh, softmax.temperature
  gather = functools.partial(jax.lax.all_gather, axis_name=axes, tiled=True)
  scatter_sum = functools.partial(jax.lax.psum_scatter, axis_name=axes, tiled=True)

  def local(weights, features, ids, hardest, draw_key):
    everyone, everyones_ids = gather(features), gather(ids)
    first = local_rows.first_row(len(weights), mesh)
    shift = jnp.full(len(everyone), 1 / temperature)
    negatives_pass, largest_logits = _negatives_pass, _largest_logits
    if kernel(weights.shape[1], softmax) != 'xla':
      negatives_pass, largest_logits = _fused_negatives, _fused_largest_logits
    if temperature < SMALLEST_TEMPERATURE_FOR_CONSTANT_MAXIMUM:
      shift = jax.lax.pmax(largest_logits(weights, everyone, first, softmax), axes)
    total, weighted, largest = negatives_pass(
      weights, everyone, everyones_ids, shift, first, draw_key, softmax)
    total, weighted = scatter_sum(total), scatter_sum(weighted)
    places = local_rows.local_places(everyones_ids, first, len(weights))
    own_row = normalise(scatter_sum(local_rows.take(weights, places)))

    here = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=len(features),
                             start_index=jax.lax.axis_index(axes) * len(features))
    largest, own_shift = here(jax.lax.pmax(largest, axes)), here(shift)
    own_logit = jnp.sum(features * own_row, axis=1) / temperature
    own = jnp.exp(own_logit - own_shift)
    normaliser = total + own
    if hardest is None:
      # P − 1 of the own class is computed from the negatives: no cancellation if P is nearly one.
      own_error = -total / normaliser
      gradient = weighted / normaliser[:, None] + own_error[:, None] * own_row
      loss, log_target = jnp.logaddexp(0., jnp.log(total) + own_shift - own_logit), own_logit
    else:
      hits, hit_rows = map(scatter_sum, smoothing.targets(
        weights, everyone, gather(hardest), shift, first, temperature))
      labelled = (1 - softmax.smoothing) * own
      target = labelled + softmax.smoothing * hits
      own_error = own / normaliser - labelled / target
      gradient = (weighted / normaliser[:, None] - softmax.smoothing * hit_rows / target[:, None]
                  + own_error[:, None] * own_row)
      loss, log_target = jnp.log(normaliser / target), jnp.log(target) + own_shift
    known = (ids >= 0) & (ids < softmax.num_instances)
    results = Scores(jnp.where(known, loss, jnp.nan), own_logit >= largest,
                     jnp.log(normaliser) + own_shift, log_target, own_error)
    return results, gradient / temperature

  spec = split(mesh)
  results, gradient = jax.shard_map(
    local, mesh=mesh, in_specs=(spec, spec, spec, spec, PartitionSpec()), out_specs=spec,
    check_vma=kernel(weights.shape[1], softmax) == 'xla')(
    *jax.lax.stop_gradient((weights, features, ids, hardest, draw_key)))
  return results._replace(loss=with_gradient(results.loss, features, gradient))


def kernel(dim: int, softmax: Softmax) -> str:
  """What compiles the two passes over rows [N', D]: 'triton' and 'mosaic' for Pallas kernels, or 'xla'.

  XLA stores the logits of a chunk in the memory of a GPU or TPU, which takes longer than the products of
  16-bit factors. It has no Triton for GPUs before compute capability 8.0, such as the V100, and Triton's
  blocks have sides of powers of two. On GPUs, float32 products take longer than the memory. On TPUs, rows
  that do not fill registers of 128 lanes would be copied to do so.
  """
  device, dtype = softmax.mesh.devices.flat[0], jnp.dtype(softmax.dtype)
  if softmax.kernel:
    return softmax.kernel
  if device.platform == 'tpu' and dtype != jnp.float16 and dim in (128, 256, 384, 512):
    return 'mosaic'
  if (device.platform == 'gpu' and dtype.itemsize == 2 and dim in (16, 32, 64, 128, 256)
      and float(device.compute_capability) >= 8):
    return 'triton'
  return 'xla'


def interpreted(softmax: Softmax) -> bool:
  """Whether kernels run as plain JAX: on a CPU, for tests."""
  return softmax.mesh.devices.flat[0].platform == 'cpu'


def chunk_size(num_features: int, num_rows: int, softmax: Softmax) -> int:
  """Rows scored at a time: few enough for a CPU's caches, or for 256 MiB of logits."""
  if softmax.chunk_size:
    return min(softmax.chunk_size, num_rows)
  if softmax.mesh.devices.flat[0].platform == 'cpu':
    return min(2048, num_rows)
  return min(max(2048, min(65536, 2 ** 26 // num_features)), num_rows)


def in_turn(index: jax.Array, start: jax.Array, size: int) -> jax.Array:
  """Which rows of a chunk no earlier chunk had, as the last chunk overlaps the one before: bool [C]."""
  return start + jnp.arange(size) >= index * size


def chunk_bounds(index: jax.Array, num_rows: int, size: int, first: jax.Array,
                 num_instances: int) -> tuple[jax.Array, jax.Array]:
  """Start of a chunk, and which of its rows count: in no earlier chunk and not padding, bool [C]."""
  start = jnp.minimum(index * size, num_rows - size)
  inside = first + start + jnp.arange(size) < num_instances
  return start, inside & in_turn(index, start, size)


def class_weights(classes, own, present, draw_key, softmax):
  """Weight of each class as a negative: β, or 0 if it takes no part; own is [C, M]. float32 [C]."""
  present = _takes_part(classes, own.any(axis=1), present, draw_key, softmax)
  return jnp.where(present, jnp.float32(softmax.negative_weight), 0)


def class_bias(places: jax.Array, first: jax.Array, num_rows: int, draw_key: jax.Array | None,
               softmax: Softmax) -> jax.Array:
  """What kernels add to the logits of this device's classes: 0, or −∞ for one that takes no part.

  Args:
    places: int32 [M], from `local_rows.local_places` of the ids.
    first: int32 [], the class of the device's first row.
    num_rows: n.
    draw_key: the key of the drawn negatives; None if none are drawn.
    softmax: the settings.

  Returns:
    float32 [n].
  """
  classes = first + jnp.arange(num_rows, dtype=jnp.int32)
  in_batch = jnp.zeros(num_rows, bool).at[places].set(True, mode='drop')
  present = _takes_part(classes, in_batch, classes < softmax.num_instances, draw_key, softmax)
  return jnp.where(present, 0, -jnp.inf)


def _takes_part(classes, in_batch, present, draw_key, softmax):
  if not softmax.num_drawn:
    return present
  drawn = negatives.drawn(classes, draw_key, softmax.num_instances, softmax.num_drawn)
  return present & (in_batch | drawn)


def _negatives_pass(weights, features, ids, shift, first, draw_key, softmax):
  """β Σ_{j≠n} e^{logit − shift} [M], the same sum times w̄ⱼ [M, D], and the largest such logit [M]."""
  size = chunk_size(len(features), len(weights), softmax)

  def chunk(index, carry):
    total, weighted, largest = carry
    start, present = chunk_bounds(index, len(weights), size, first, softmax.num_instances)
    classes = first + start + jnp.arange(size, dtype=jnp.int32)
    unit = normalise(jax.lax.dynamic_slice_in_dim(weights, start, size))
    logits = products.contract(features / softmax.temperature, unit, (1, 1), softmax.dtype)
    own = classes[None] == ids[:, None]
    weight = class_weights(classes, own.T, present, draw_key, softmax)
    terms = jnp.where(own, 0, jnp.exp(logits - shift[:, None]) * weight[None])
    weighted += products.sum_products(terms, unit, softmax.dtype)
    counted = jnp.where(own | (weight == 0)[None], -jnp.inf, logits)
    return total + terms.sum(axis=1), weighted, jnp.maximum(largest, counted.max(axis=1))

  sums = jnp.zeros(len(features)), jnp.zeros(features.shape), jnp.full(len(features), -jnp.inf)
  sums = jax.lax.pcast(sums, softmax.mesh.axis_names, to='varying')
  return jax.lax.fori_loop(0, -(-len(weights) // size), chunk, sums)


def _largest_logits(weights, features, first, softmax):
  """The largest logit of each feature over this device's rows: float32 [M]."""
  size = chunk_size(len(features), len(weights), softmax)

  def chunk(index, largest):
    start, present = chunk_bounds(index, len(weights), size, first, softmax.num_instances)
    unit = normalise(jax.lax.dynamic_slice_in_dim(weights, start, size))
    logits = products.contract(features / softmax.temperature, unit, (1, 1), softmax.dtype)
    return jnp.maximum(largest, jnp.where(present[None], logits, -jnp.inf).max(axis=1))

  start = jax.lax.pcast(jnp.full(len(features), -jnp.inf), softmax.mesh.axis_names, to='varying')
  return jax.lax.fori_loop(0, -(-len(weights) // size), chunk, start)


def _fused_negatives(weights, features, ids, shift, first, draw_key, softmax):
  """`_negatives_pass` as a kernel."""
  places = local_rows.local_places(ids, first, len(weights))
  bias = class_bias(places, first, len(weights), draw_key, softmax)
  total, weighted, largest = _kernel_sums(weights, features, places, shift, bias, softmax)
  return softmax.negative_weight * total, softmax.negative_weight * weighted, largest


def _fused_largest_logits(weights, features, first, softmax):
  """`_largest_logits` as a kernel: the sums are ignored; with 1/τ as the maximum they cannot overflow."""
  nowhere = jnp.full(len(features), len(weights), jnp.int32)
  bias = class_bias(nowhere, first, len(weights), None, dataclasses.replace(softmax, num_drawn=0))
  shift = jnp.full(len(features), 1 / softmax.temperature)
  return _kernel_sums(weights, features, nowhere, shift, bias, softmax)[2]


def _kernel_sums(weights, features, places, shift, bias, softmax):
  from conic_jax.losses import fused_negatives  # Takes a while, and needs an accelerator.
  inputs = weights, (features / softmax.temperature).astype(softmax.dtype), places, shift, bias
  if kernel(weights.shape[1], softmax) == 'mosaic':
    return fused_negatives.mosaic(*inputs, interpreted(softmax))
  cores = getattr(softmax.mesh.devices.flat[0], 'core_count', 8)
  return fused_negatives.triton(*inputs, cores, interpreted(softmax))
