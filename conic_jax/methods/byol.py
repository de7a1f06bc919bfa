"""BYOL: from one view, the online network predicts what a moving average of itself makes of the other.

L = ‖p̄₁ − z̄′₂‖² + ‖p̄₂ − z̄′₁‖²,  p the prediction, z′ the target's projection, without gradient
ξ ← m ξ + (1 − m) θ after each update, m from m₀ to 1 on a cosine

Source: "Bootstrap Your Own Latent" (Grill et al. 2020), Eq. 2, §3.
"""
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax import losses, models
from conic_jax.errors import UserError
from conic_jax.memories.momentum_encoder import MomentumEncoder
from conic_jax.methods.method import Aux, DecomposedMethod, total_steps
from conic_jax.methods.network import Network, merge_views, pair_metrics
from conic_jax.views import Views


class BYOL(DecomposedMethod):
  """The method; see the module.

  Batch norm is over all images of the global batch, separately for the first and the second views. The target
  has encoder and head, but no predictor.
  """

  def __init__(self, config: Any, num_instances: int, dtype: jnp.dtype):
    self.network = Network(config, dtype, groups=2, norm_output=False)
    predictor = config.predictor
    self.predictor = models.MLP(predictor.hidden, config.head.features, predictor.norm, norm_output=False,
                                groups=2, dtype=dtype, output_bias=predictor.output_bias)
    first = Views(**config.views)
    self.views: tuple[Views, ...] = (first, dataclasses.replace(first, **config.second_view))
    self.target = MomentumEncoder(**config.momentum, total_steps=total_steps(config, num_instances))
    self.memories = {'target': self.target}

  def init(self, rng, batch):
    encoder_rng, head_rng, predictor_rng = jax.random.split(rng, 3)
    params, batch_stats = self.network.init(encoder_rng, head_rng, batch['views'][0][:, 0])
    predictor = self.predictor.init(predictor_rng, jnp.zeros((1, self.predictor.features)), mode='batch')
    target = self.target.init(params, batch_stats)
    return ({**params, 'predictor': predictor['params']},
            {**batch_stats, 'predictor': predictor.get('batch_stats', {})}, {'target': target})

  def embed(self, params, batch_stats, memories, batch, rng):
    del rng
    views, target = jnp.concatenate(batch['views'], axis=1), memories['target']
    images, valid = merge_views(views), jnp.repeat(batch['valid'], 2)
    members = jnp.tile(jnp.arange(2, dtype=jnp.int32), len(views))
    projected, batch_stats = self.network.project(params, batch_stats, images, valid, 'grouped', members)
    predictions, updated = self.predictor.apply(
      {'params': params['predictor'], 'batch_stats': batch_stats['predictor']}, projected, mode='grouped',
      mask=valid, members=members, mutable=['batch_stats'])
    batch_stats = {**batch_stats, 'predictor': updated.get('batch_stats', {})}
    targets, target_stats = jax.lax.stop_gradient(self.network.project(
      target['params'], target['batch_stats'], images, valid, 'grouped', members))
    paired = lambda features: features.reshape(*views.shape[:2], -1)
    return (paired(predictions), paired(targets), paired(projected)), (batch_stats, target_stats)

  def loss_of(self, params, embedded, statistics, memories, batch, rng):
    del params, memories, rng
    predictions, targets, projected = embedded
    batch_stats, target_stats = statistics
    distances = losses.negative_cosine(predictions, targets[:, ::-1])
    loss = losses.masked_mean(distances.sum(axis=1), batch['valid'])
    pairs = losses.normalise(projected)
    metrics = pair_metrics(pairs[:, 0], pairs[:, 1], batch['valid'])
    return loss, Aux(batch_stats, metrics, {'target': target_stats})



def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> BYOL:
  """Creates the method from `config`.

  Raises:
    UserError: if `config.views.count` is not 1, or for invalid momentum settings.
  """
  del mesh
  if config.views.count != 1:
    raise UserError(f'config.views.count is {config.views.count}: BYOL takes one view as config.views has it '
                    'and one as config.second_view changes it; set it to 1.')
  return BYOL(config, num_instances, dtype)
