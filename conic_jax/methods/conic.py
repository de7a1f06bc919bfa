"""ConIC: instance classification with a consistency loss between the views of an image.

L = mean over images and views of ℓs + α · mean over images and pairs of views of ℓc

Source: "Consistent Instance Classification for Unsupervised Representation Learning", §3.2, §4.
"""
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax import losses, models
from conic_jax.classifier import full
from conic_jax.mesh import split
from conic_jax.methods.base import Aux, Method
from conic_jax.views import Views


class Settings(NamedTuple):
  """ConIC's own settings, the `config` fields of the same names.

  Attributes:
    temperature: τ of the softmax.
    alpha: α, the weight of the consistency loss.
    norm: the norm that the rows start with.
    lr_scale: the rows' learning rate as a multiple of the encoder's.
    momentum, weight_decay: of the rows' SGD.
  """
  temperature: float
  alpha: float
  norm: float
  lr_scale: float
  momentum: float
  weight_decay: float


@flax.struct.dataclass
class ForUpdate:
  """What the rows' SGD needs of a batch of M features.

  Attributes:
    features: float32 [M, D], of unit norm; ids: int32 [M].
    sample_weights, log_normaliser: float32 [M], as `classifier.full.update` takes them.
  """
  features: jax.Array
  ids: jax.Array
  sample_weights: jax.Array
  log_normaliser: jax.Array


def merge_views(views: jax.Array) -> jax.Array:
  """[B, V, ...] to [B·V, ...], image-major, so that images stay on their device."""
  return views.reshape(-1, *views.shape[2:])


class ConIC(Method):
  """The method; see the module."""

  def __init__(self, encoder: models.ResNet, head: models.MLP, views: Views, settings: Settings,
               num_instances: int, mesh: Mesh, dtype: jnp.dtype):
    self.encoder, self.head, self.settings = encoder, head, settings
    self.views, self.num_instances, self.mesh, self.dtype = (views,), num_instances, mesh, dtype

  def init(self, rng, batch):
    encoder_rng, head_rng, rows_rng = jax.random.split(rng, 3)
    images = merge_views(batch['views'][0])
    encoder = self.encoder.init(encoder_rng, images, mode='batch')
    features = jnp.zeros((len(images), self.encoder.num_features))
    head = self.head.init(head_rng, features, mode='batch')
    rows = full.init(rows_rng, self.num_instances, self.head.features, self.settings.norm,
                     self.mesh.size)
    pair = lambda collection: {'encoder': encoder.get(collection, {}),
                               'head': head.get(collection, {})}
    return pair('params'), pair('batch_stats'), {'rows': rows}

  def loss(self, params, batch_stats, method_state, batch, rng):
    views = batch['views'][0]
    images, count = views.shape[:2]
    ids, valid = jnp.repeat(batch['id'], count), jnp.repeat(batch['valid'], count)
    features, batch_stats = self._project(params, batch_stats, merge_views(views), valid)
    unit = losses.normalise(features)
    scores = full.scores(method_state['rows'].weights, unit, ids, num_instances=self.num_instances,
                         temperature=self.settings.temperature, mesh=self.mesh, dtype=self.dtype)
    pairs = unit.reshape(images, count, -1)

    loss_instance = losses.masked_mean(scores.loss, valid)
    loss_consistency = jnp.float32(0)
    if count > 1:
      loss_consistency = losses.masked_mean(losses.consistency(pairs), batch['valid'])
    loss = loss_instance + self.settings.alpha * loss_consistency

    seen = jax.lax.stop_gradient(pairs)
    metrics = {
      'loss_instance': loss_instance,
      'loss_consistency': loss_consistency,
      'instance_top1': losses.masked_mean(scores.correct.astype(jnp.float32), valid),
      'alignment': losses.alignment(seen, batch['valid']),
      'uniformity': losses.uniformity(seen[:, 0], batch['valid']),
      'feature_std': losses.feature_std(seen[:, 0], batch['valid']),
    }
    sample_weights = valid / jnp.maximum(valid.sum(), 1).astype(jnp.float32)
    for_update = ForUpdate(unit, ids, sample_weights, scores.log_normaliser)
    return loss, Aux(batch_stats, metrics, jax.lax.stop_gradient(for_update))

  def update(self, method_state, aux, params, step, lr):
    batch, settings = aux.for_update, self.settings
    rows = full.update(
      method_state['rows'], batch.features, batch.ids, batch.sample_weights, batch.log_normaliser,
      lr * settings.lr_scale, num_instances=self.num_instances, temperature=settings.temperature,
      momentum=settings.momentum, weight_decay=settings.weight_decay, mesh=self.mesh,
      dtype=self.dtype)
    return {'rows': rows}

  def encode(self, variables, images):
    own = {name: collection['encoder'] for name, collection in variables.items()}
    return self.encoder.apply(own, images, mode='frozen')

  def partition_rules(self):
    return ((r'^rows/', split(self.mesh)),)

  def _project(self, params, batch_stats, images, valid):
    """Head features float32 [M, D] of images [M, S, S, 3], and the new running statistics."""
    features, encoder = self.encoder.apply(
      {'params': params['encoder'], 'batch_stats': batch_stats['encoder']}, images, mode='batch',
      mask=valid, mutable=['batch_stats'])
    features, head = self.head.apply(
      {'params': params['head'], 'batch_stats': batch_stats['head']}, features, mode='batch',
      mask=valid, mutable=['batch_stats'])
    return features, {'encoder': encoder.get('batch_stats', {}), 'head': head.get('batch_stats', {})}


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> ConIC:
  """Makes ConIC with the settings of `config`."""
  settings = Settings(
    temperature=config.temperature, alpha=config.alpha, norm=config.classifier.norm,
    lr_scale=config.classifier.lr_scale, momentum=config.classifier.momentum,
    weight_decay=config.classifier.weight_decay)
  encoder = models.build_encoder(config.encoder, dtype)
  head = models.MLP(config.head.hidden, config.head.features, config.head.norm, dtype=dtype)
  return ConIC(encoder, head, Views(**config.views), settings, num_instances, mesh, dtype)
