"""MoCo v1 and v2: a query against its key and a queue of keys from a momentum encoder.

ℓ = −log [e^{q·k₊/τ} / (e^{q·k₊/τ} + Σ₋ e^{q·k₋/τ})]

Source: "Momentum Contrast for Unsupervised Visual Representation Learning" (He et al. 2020), "Improved
Baselines with Momentum Contrastive Learning" (Chen et al. 2020); the two differ in their configs only.
"""
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

  def contrast(self, queries, keys, queue, batch):
    positives = jnp.sum(queries * keys, axis=1, keepdims=True) / self.temperature
    negatives = self.negatives(queue, queries, self.temperature, batch)
    loss = losses.masked_mean(losses.contrast(positives, negatives[:, None]), batch['valid'])
    nearest = jax.lax.stop_gradient(positives[:, 0] > negatives.max(axis=1))
    return loss, {'contrast_top1': losses.masked_mean(nearest.astype(jnp.float32), batch['valid'])}


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> MoCo:
  """Makes it with the settings of `config`."""
  return MoCo(config, num_instances, mesh, dtype)
