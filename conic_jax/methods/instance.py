"""Shared by the methods with one classifier row per image: network, losses, metrics and the rows' SGD.

L = mean over images and views of ℓs + α · mean over images and pairs of views of ℓc

With α = 0 it is instance classification alone. There may be small views besides the first group (multi-crop):
they train the encoder, while the rows learn from the first group alone, as in PIC's release.
"""
import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax import losses
from conic_jax.losses import partitioned
from conic_jax.memories.instance_rows import Classified, InstanceRows, RowsSgd
from conic_jax.methods.method import Aux, DecomposedMethod, softmax_kernel
from conic_jax.methods.network import Network, merge_views
from conic_jax.views import Views


def view_groups(config: Any) -> tuple[Views, ...]:
  """The group `config.views`, and small views with the changes of `config.small_views`, if any."""
  first = Views(**config.views)
  if not config.get('small_views') or not config.small_views.count:
    return (first,)
  return first, dataclasses.replace(first, **config.small_views)


def rows_sgd(settings: Any) -> RowsSgd:
  """Settings of the rows' SGD, from `config.classifier`."""
  return RowsSgd(settings.norm, settings.lr_scale, settings.momentum, settings.weight_decay)


class InstanceMethod(DecomposedMethod):
  """Instance classification with a consistency loss; over all classes unless `classify` says otherwise.

  Attributes:
    softmax: settings of the softmax, including its classes.
    alpha: α, the weight of the consistency loss; alpha_pace: how it is phased in, see `losses.paced_weight`.
    rows: the name of the memory that learns from the scores; None if the rows are parameters.
  """
  rows: str | None = 'rows'

  def __init__(self, config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype, *, alpha: float,
               softmax: partitioned.Softmax | None = None):
    self.network = Network(config, dtype)
    self.dim = config.head.features
    self.views = view_groups(config)
    self.alpha, self.alpha_pace = alpha, config.get('alpha_pace', 0.0)
    settings = config.classifier
    self.softmax = softmax or partitioned.Softmax(num_instances, config.temperature, mesh, dtype,
                                                  chunk_size=settings.chunk_size,
                                                  kernel=softmax_kernel(config))
    self.chance = 'loss_instance', self.softmax.chance_loss
    self.num_instances, self.mesh, self.dtype = num_instances, mesh, dtype
    self.memories = {
      'rows': InstanceRows(num_instances, self.dim, self.softmax, rows_sgd(settings))}

  # ---- Methods of this family may override these -------------------------------------------------

  def classify(self, params: Any, memories: dict[str, Any], features: jax.Array, batch: dict[str, Any],
               rng: jax.Array) -> Classified:
    """Scores the unit features [M, D]: everything that the loss and the rows' SGD need of them."""
    del params, rng
    count = len(features) // len(batch['id'])
    ids = jnp.repeat(batch['id'], count)
    scores = partitioned.scores(memories['rows'].weights, features, ids, self.softmax)
    return Classified(features, ids, mean_weights(batch['valid'], count), scores)

  # ---- The contract --------------------------------------------------------------------------------

  def init(self, rng, batch):
    encoder_rng, head_rng, rows_rng = jax.random.split(rng, 3)
    network = self.network.init(encoder_rng, head_rng, merge_views(batch['views'][0]))
    return *network, {name: memory.init(rows_rng) for name, memory in self.memories.items()}

  def embed(self, params, batch_stats, memories, batch, rng):
    del memories, rng
    return self.project_views(params, batch_stats, batch)

  def loss_of(self, params, embedded, statistics, memories, batch, rng):
    pairs, count = embedded, embedded.shape[1]
    valid = jnp.repeat(batch['valid'], count)
    classified = self.classify(params, memories, merge_views(pairs), batch, rng)

    loss_instance = losses.masked_mean(classified.scores.loss, valid)
    loss_consistency = jnp.float32(0)
    if count > 1:
      loss_consistency = losses.masked_mean(losses.consistency(pairs), batch['valid'])
    weight = losses.paced_weight(self.alpha, self.alpha_pace, loss_instance, self.softmax.chance_loss)
    loss = loss_instance + weight * loss_consistency

    fixed = jax.lax.stop_gradient(pairs)
    metrics = {
      'loss_instance': loss_instance,
      'loss_consistency': loss_consistency,
      'instance_top1': losses.masked_mean(classified.scores.correct.astype(jnp.float32), valid),
      'alignment': losses.alignment(fixed, batch['valid']),
      'uniformity': losses.uniformity(fixed[:, 0], batch['valid']),
      'feature_std': losses.feature_std(fixed[:, 0], batch['valid']),
    }
    if self.alpha_pace:
      metrics['consistency_weight'] = weight
    if len(self.views) > 1:
      teaching = jnp.tile(jnp.arange(count) < self.views[0].count, len(pairs))
      classified = classified._replace(sample_weights=jnp.where(teaching, classified.sample_weights, 0))
    seen = {self.rows: jax.lax.stop_gradient(classified)} if self.rows else {}
    return loss, Aux(statistics, metrics, seen)

  def project_views(self, params: Any, batch_stats: Any, batch: dict[str, Any]) -> tuple[jax.Array, Any]:
    """Unit features float32 [B, V, D] of all views; each group is a batch of its own for batch norm."""
    groups = []
    for views in batch['views']:
      images, count = views.shape[:2]
      valid = jnp.repeat(batch['valid'], count)
      features, batch_stats = self.network.project(
        params, batch_stats, merge_views(views), valid, 'batch')
      groups.append(losses.normalise(features).reshape(images, count, -1))
    return jnp.concatenate(groups, axis=1), batch_stats


def mean_weights(valid: jax.Array, count: int) -> jax.Array:
  """The weight of each feature in the mean over valid images and their views, float32 [M]."""
  chex.assert_rank(valid, 1)
  total = jnp.maximum(valid.sum() * count, 1).astype(jnp.float32)
  return jnp.repeat(valid.astype(jnp.float32) / total, count)
