"""Label smoothing over the hardest classes: sums over them, and the gradient of their rows.

Everything here runs on one device, inside a `shard_map`: of the K hardest classes of each image it sees those
whose rows it holds (maybe none), in blocks of images, so that no array [M, K, D] exists.
"""
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from conic_jax.hardware import local_rows
from conic_jax.losses import normalise

_BLOCK_ELEMENTS = 2 ** 22
_HIGHEST = jax.lax.Precision.HIGHEST


class Pull(NamedTuple):
  """Inputs to the gradient of the hardest rows: M features of the B images of a batch.

  Attributes:
    features: float32 [M, D], of unit norm.
    coefficients: float32 [M], aₘ α/τ.
    hardest: int32 [B, K].
    log_target: float32 [M], log Σⱼ yⱼ e^{w̄ⱼᵀx̄/τ}.
    applied: bool [], False if nothing may change.
  """
  features: jax.Array
  coefficients: jax.Array
  hardest: jax.Array
  log_target: jax.Array
  applied: jax.Array


def targets(weights: jax.Array, features: jax.Array, hardest: jax.Array, shift: jax.Array,
            first: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
  """Mean of the hardest classes' terms, and of the terms times their rows, over the rows of this device.

  (1/K) Σₕ e^{w̄ₕᵀx̄/τ − shift},  (1/K) Σₕ e^{w̄ₕᵀx̄/τ − shift} w̄ₕ

  Args:
    weights: float32 [n, D], this device's rows.
    features: float32 [M, D], of unit norm, image-major.
    hardest: int32 [B, K].
    shift: float32 [M], subtracted from the logits.
    first: int32 [], the class of the device's first row.
    temperature: τ.

  Returns:
    float32 [M] and float32 [M, D].

  Source: One-Million, Eq. 3.
  """
  chex.assert_rank([weights, features, hardest, shift], [2, 2, 2, 1])
  chex.assert_equal_shape_prefix([features, shift], 1)
  images, k = hardest.shape

  def block(inputs):
    features, hardest, shift = inputs  # [b, V, D], [b, K], [b, V]
    unit, _, places = _rows(weights, hardest, first)
    logits = jnp.einsum('bvd,bkd->bvk', features, unit, precision=_HIGHEST) / temperature
    here = (places < len(weights))[:, None]
    terms = jnp.where(here, jnp.exp(logits - shift[:, :, None]), 0) / k
    return terms.sum(axis=2), jnp.einsum('bvk,bkd->bvd', terms, unit, precision=_HIGHEST)

  dim = features.shape[1]
  by_image = lambda x: x.reshape(images, -1, *x.shape[1:])
  sums, rows = jax.lax.map(block, _blocks((by_image(features), hardest, by_image(shift)), k * dim))
  return sums.reshape(-1), rows.reshape(-1, dim)


def pull_hardest(weights: jax.Array, velocity: jax.Array, pull: Pull, first: jax.Array,
                 temperature: float, scale: float) -> jax.Array:
  """Adds the hardest classes' −q terms of the gradient to the velocities of this device's rows.

  v ← v + scale · (I − w̄w̄ᵀ) (−Σₘ aₘ qₘₕ x̄ₘ/τ) / ‖w‖,  qₘₕ = (α/K) e^{w̄ₕᵀx̄ₘ/τ} / Σⱼ yⱼ e^{w̄ⱼᵀx̄ₘ/τ}

  The velocity is linear in the gradient, so the pass over all rows can add the rest.

  Args:
    weights, velocity: float32 [n, D], this device's rows before the step.
    pull: the batch.
    first: int32 [], the class of the device's first row.
    temperature: τ.
    scale: cancels the factor that the velocity will be multiplied by later.

  Source: One-Million, Eq. 3.
  """
  chex.assert_rank([weights, velocity], 2)
  chex.assert_equal_shape([weights, velocity])
  images, k = pull.hardest.shape
  dim = weights.shape[1]

  def block(velocity, inputs):
    features, coefficients, hardest, log_target = inputs
    unit, norms, places = _rows(weights, hardest, first)
    logits = jnp.einsum('bvd,bkd->bvk', features, unit, precision=_HIGHEST) / temperature
    shares = jnp.exp(logits - log_target[:, :, None]) * coefficients[:, :, None] / k
    gradient = -jnp.einsum('bvk,bvd->bkd', shares, features, precision=_HIGHEST)
    radial = jnp.sum(gradient * unit, axis=2, keepdims=True)
    change = scale * (gradient - radial * unit) / jnp.maximum(norms, 1e-6)
    places = jnp.where(pull.applied, places, len(weights))
    return velocity.at[places.reshape(-1)].add(change.reshape(-1, dim), mode='drop'), None

  by_image = lambda x: x.reshape(images, -1, *x.shape[1:])
  blocks = _blocks((by_image(pull.features), by_image(pull.coefficients), pull.hardest,
                    by_image(pull.log_target)), k * dim)
  return jax.lax.scan(block, velocity, blocks)[0]


def _rows(weights, hardest, first):
  """Unit rows [b, K, D], norms [b, K, 1] and local positions [b, K]; rows of other devices are zero."""
  places = local_rows.local_places(hardest, first, len(weights))
  rows = local_rows.take(weights, places)
  return normalise(rows), jnp.linalg.norm(rows, axis=2, keepdims=True), places


def _blocks(arrays, elements_an_image):
  """Splits the first axis into blocks whose gathered rows have a bounded size."""
  images = len(arrays[0])
  most = max(1, _BLOCK_ELEMENTS // elements_an_image)
  size = max(size for size in range(1, min(most, images) + 1) if images % size == 0)
  return jax.tree.map(lambda x: x.reshape(images // size, size, *x.shape[1:]), arrays)
