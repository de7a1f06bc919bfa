"""CO2: MoCo with consistent contrast: a query and its key should be equally similar to each negative.

L = ℓ + α·½ (KL(P‖Q) + KL(Q‖P)),  P(i) = e^{k₊·kᵢ/τ_con} / Σⱼ e^{k₊·kⱼ/τ_con},  Q(i) likewise of the query

Both are over the keys of the queue, without the positive. P carries no gradient, as keys carry none.

Source: "CO2: Consistent Contrast for Unsupervised Visual Representation Learning" (Wei et al. 2021).
"""
import math
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax import losses
from conic_jax.methods.method import check_positive
from conic_jax.methods.moco import MoCo


class CO2(MoCo):
  """The method; see the module."""

  def __init__(self, config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype):
    super().__init__(config, num_instances, mesh, dtype)
    self.chance = 'loss_contrast', math.log1p(config.queue.size)
    self.alpha, self.consistency_temperature = config.consistency.alpha, config.consistency.temperature

  def contrast(self, queries, keys, queue, batch):
    of_queries, of_keys = (self.cosines(queue, vectors, batch['id']) for vectors in (queries, keys))
    loss_contrast, metrics = self.info_nce(queries, keys, of_queries, batch['valid'])
    p, q = (cosines / self.consistency_temperature for cosines in (of_keys, of_queries))
    loss_consistency = losses.masked_mean(losses.symmetric_kl(p, q), batch['valid'])
    metrics |= {'loss_contrast': loss_contrast, 'loss_consistency': loss_consistency}
    return loss_contrast + self.alpha * loss_consistency, metrics


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> CO2:
  """Creates the method from `config`.

  Raises:
    UserError: if the temperature is not positive.
  """
  check_positive(config.consistency.temperature, 'config.consistency.temperature')
  return CO2(config, num_instances, mesh, dtype)
