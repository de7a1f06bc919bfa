"""MoCo v1 and v2: a query against its key and a queue of keys from a momentum encoder.

ℓ = −log [e^{q·k₊/τ} / (e^{q·k₊/τ} + Σ₋ e^{q·k₋/τ})]

Source: "Momentum Contrast for Unsupervised Visual Representation Learning" (He et al. 2020), "Improved
Baselines with Momentum Contrastive Learning" (Chen et al. 2020); the two differ in their configs only.
"""
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax import losses
from conic_jax.methods.momentum import MomentumMethod


class MoCo(MomentumMethod):
  """The method; see the module."""

  def __init__(self, config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype):
    super().__init__(config, num_instances, mesh, dtype)
    self.temperature = config.temperature
    self.chance = 'loss', math.log1p(config.queue.size)

  def contrast(self, queries, keys, queue, batch):
    return self.info_nce(queries, keys, self.cosines(queue, queries, batch['id']), batch['valid'])

  def info_nce(self, queries: jax.Array, keys: jax.Array, cosines: jax.Array, valid: jax.Array
               ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean InfoNCE over valid queries [], and how often the own key is the nearest; cosines: [B, K']."""
    positives = jnp.sum(queries * keys, axis=1)
    loss = losses.contrast(positives[:, None] / self.temperature, cosines[:, None] / self.temperature)
    nearest = jax.lax.stop_gradient(positives > cosines.max(axis=1)).astype(jnp.float32)
    return losses.masked_mean(loss, valid), {'contrast_top1': losses.masked_mean(nearest, valid)}


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> MoCo:
  """Creates the method from `config`."""
  return MoCo(config, num_instances, mesh, dtype)
