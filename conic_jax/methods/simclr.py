"""SimCLR: each of an image's two views contrasted with all other views of the global batch.

ℓ(i, j) = −log [e^{x̄ᵢᵀx̄ⱼ/τ} / Σ_{k≠i} e^{x̄ᵢᵀx̄ₖ/τ}]
L = mean over images of the mean, or the sum, of ℓ over both orders of its views

Source: "A Simple Framework for Contrastive Learning of Visual Representations" (Chen et al. 2020).
"""
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax import losses
from conic_jax.errors import UserError
from conic_jax.methods.method import Aux, Method
from conic_jax.methods.network import Network, merge_views, pair_metrics
from conic_jax.views import Views


class SimCLR(Method):
  """The method; it has no memories. Batch norm is over all views of the global batch."""
  undivided = 'it contrasts each image with all others of the batch, so its loss is no sum over images'

  def __init__(self, config: Any, dtype: jnp.dtype):
    self.network = Network(config, dtype)
    self.views: tuple[Views, ...] = (Views(**config.views),)
    self.temperature, self.reduction = config.temperature, config.loss.reduction
    directions = 2 if self.reduction == 'sum' else 1
    self.chance = 'loss', directions * math.log(2 * config.batch_size - 1)

  def init(self, rng, batch):
    encoder_rng, head_rng = jax.random.split(rng)
    return *self.network.init(encoder_rng, head_rng, merge_views(batch['views'][0])), {}

  def loss(self, params, batch_stats, memories, batch, rng):
    views, valid = batch['views'][0], batch['valid']
    features, batch_stats = self.network.project(
      params, batch_stats, merge_views(views), jnp.repeat(valid, 2), 'batch')
    pairs = losses.normalise(features).reshape(*views.shape[:2], -1)
    loss = losses.masked_mean(losses.nt_xent(pairs, valid, self.temperature, self.reduction), valid)
    return loss, Aux(batch_stats, pair_metrics(pairs[:, 0], pairs[:, 1], valid))


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> SimCLR:
  """Creates the method from `config`.

  Raises:
    UserError: if there are not two views, or for an unknown reduction.
  """
  del num_instances, mesh
  if config.views.count != 2:
    raise UserError(f'config.views.count is {config.views.count}: SimCLR compares two views of an image; set '
                    'it to 2.')
  if config.loss.reduction not in ('mean', 'sum'):
    raise UserError(f"config.loss.reduction is '{config.loss.reduction}'; available: mean, sum.")
  return SimCLR(config, dtype)
