"""InstDisc: discriminates images by their past features, kept in a bank.

  'nce':   J = −log h(i) − Σ_{j in noise} log(1 − h(j)),  h(j) = P(j|f) / (P(j|f) + m/N)
           with P(j|f) = e^{vⱼᵀf/τ}/Z, Z estimated on the first batch
  'full':  ℓ = −log [ e^{vᵢᵀf/τ} / Σⱼ e^{vⱼᵀf/τ} ], the softmax over the whole bank, its rows normalised
  bank:    vᵢ ← m vᵢ + (1 − m) f, then normalised, for the images of the batch

Source: "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (Wu et al. 2018), Eq. 2 to
8, and its public code. In both, the bank is not trained by gradient.
"""
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax import losses
from conic_jax.errors import UserError
from conic_jax.losses import nce, partitioned
from conic_jax.memories.bank import Bank, Normaliser
from conic_jax.methods.method import Aux, DecomposedMethod, softmax_kernel
from conic_jax.methods.network import Network
from conic_jax.views import Views


class InstDisc(DecomposedMethod):
  """The method; see the module. The memories are 'bank' and, for 'nce', 'normaliser'."""

  def __init__(self, config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype):
    self.network = Network(config, dtype)
    self.views = (Views(**config.views),)
    self.bank = Bank(num_instances, config.head.features, config.bank.momentum, mesh)
    self.memories = {'bank': self.bank}
    self.softmax = partitioned.Softmax(num_instances, config.temperature, mesh, dtype,
                                       kernel=softmax_kernel(config))
    self.noise = None
    self.chance = None if config.loss.name == 'nce' else ('loss', math.log(num_instances))
    if config.loss.name == 'nce':
      self.noise = nce.NceSettings(num_instances, config.loss.noise, config.temperature, mesh)
      self.memories = {**self.memories, 'normaliser': Normaliser()}

  def init(self, rng, batch):
    encoder_rng, head_rng, bank_rng = jax.random.split(rng, 3)
    params, batch_stats = self.network.init(encoder_rng, head_rng, batch['views'][0][:, 0])
    states = {'bank': self.bank.init(bank_rng)}
    if self.noise:
      states['normaliser'] = Normaliser().init()
    return params, batch_stats, states

  def embed(self, params, batch_stats, memories, batch, rng):
    del memories, rng
    features, batch_stats = self.network.project(
      params, batch_stats, batch['views'][0][:, 0], batch['valid'], mode='batch')
    return losses.normalise(features), batch_stats

  def loss_of(self, params, embedded, statistics, memories, batch, rng):
    del params
    valid, unit = batch['valid'], embedded
    each, figures = self.discriminate(memories, unit, batch, rng)
    seen = jax.lax.stop_gradient(unit)
    metrics = {**figures, 'uniformity': losses.uniformity(seen, valid),
               'feature_std': losses.feature_std(seen, valid)}
    # Writing only rows whose loss is finite also puts all reads of the bank before the write; otherwise XLA
    # copies it.
    for_bank = {'features': seen, 'ids': batch['id'], 'writes': valid & jnp.isfinite(each)}
    for_normaliser = {'normaliser': figures['normaliser']} if self.noise else {}
    return losses.masked_mean(each, valid), Aux(statistics, metrics, {'bank': for_bank, **for_normaliser})

  def discriminate(self, memories: dict[str, Any], features: jax.Array, batch: dict[str, Any], rng: jax.Array
                   ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of each image, float32 [B], and metrics by name; features [B, D] are of unit norm."""
    bank, ids, valid = memories['bank'], batch['id'], batch['valid']
    if self.noise is None:
      scores = partitioned.scores(bank, features, ids, self.softmax)
      return scores.loss, {'instance_top1': losses.masked_mean(scores.correct.astype(jnp.float32), valid)}
    told = nce.nce(bank, features, ids, valid, memories['normaliser'], rng, self.noise)
    return told.loss, {'normaliser': told.normaliser}


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> InstDisc:
  """Creates the method from `config`.

  Raises:
    UserError: for an unknown loss, or a setting out of range.
  """
  if config.loss.name not in ('nce', 'full'):
    raise UserError(f"config.loss.name is '{config.loss.name}'; available: nce, full.")
  if config.loss.noise < 1:
    raise UserError(f'config.loss.noise is {config.loss.noise}; it must be at least 1. For a loss without '
                    'noise set config.loss.name to full.')
  if not 0 <= config.bank.momentum < 1:
    raise UserError(f'config.bank.momentum is {config.bank.momentum}; it must be at least 0 and below 1, '
                    'where the bank would never change.')
  if config.views.count != 1:
    raise UserError(f'config.views.count is {config.views.count}: instdisc compares one view of an image '
                    'with its row of the bank; set it to 1.')
  return InstDisc(config, num_instances, mesh, dtype)
