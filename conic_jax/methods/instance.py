"""What the methods with one classifier row an image share: network, losses, metrics, and the rows' SGD.

L = mean over images and views of ℓs + α · mean over images and pairs of views of ℓc

With α = 0 it is instance classification alone.
"""
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax import losses, models
from conic_jax.classifier import full
from conic_jax.mesh import split
from conic_jax.methods.base import Aux, Method
from conic_jax.views import Views


@dataclasses.dataclass(frozen=True)
class Sgd:
  """How the rows learn, the fields of `config.classifier`.

  Attributes:
    norm: the norm that the rows start with.
    lr_scale: the rows' learning rate as a multiple of the encoder's.
    momentum, weight_decay: of the rows' SGD.
  """
  norm: float
  lr_scale: float
  momentum: float
  weight_decay: float


def merge_views(views: jax.Array) -> jax.Array:
  """[B, V, ...] to [B·V, ...], image-major, so that images stay on their device."""
  return views.reshape(-1, *views.shape[2:])


class InstanceMethod(Method):
  """Instance classification with a consistency loss; over all classes unless `classify` says otherwise.

  Attributes:
    softmax: over which classes, and how, the softmax is taken.
    alpha: α, the weight of the consistency loss.
    sgd: how the rows learn.
  """

  def __init__(self, config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype, *, alpha: float,
               softmax: full.Softmax | None = None):
    self.encoder = models.build_encoder(config.encoder, dtype)
    self.head = models.MLP(config.head.hidden, config.head.features, config.head.norm, dtype=dtype)
    self.views = (Views(**config.views),)
    self.alpha = alpha
    settings = config.classifier
    self.softmax = softmax or full.Softmax(num_instances, config.temperature, mesh, dtype,
                                           chunk_size=settings.chunk_size)
    self.sgd = Sgd(settings.norm, settings.lr_scale, settings.momentum, settings.weight_decay)
    self.num_instances, self.mesh, self.dtype = num_instances, mesh, dtype

  # ---- What a method of this family may do in its own way ----------------------------------------

  def init_classifier(self, rng: jax.Array) -> Any:
    """The method state."""
    return {'rows': full.init(rng, self.num_instances, self.head.features, self.sgd.norm, self.mesh.size)}

  def classify(self, params: Any, method_state: Any, features: jax.Array, batch: dict[str, Any],
               rng: jax.Array) -> full.Batch:
    """Scores the features [M, D], of unit norm: all that the loss and the rows' SGD need of them."""
    del params, rng
    count = len(features) // len(batch['id'])
    ids = jnp.repeat(batch['id'], count)
    scores = full.scores(method_state['rows'].weights, features, ids, self.softmax)
    return full.Batch(features, ids, mean_weights(batch['valid'], count), scores)

  # ---- The contract --------------------------------------------------------------------------------

  def init(self, rng, batch):
    encoder_rng, head_rng, rows_rng = jax.random.split(rng, 3)
    images = merge_views(batch['views'][0])
    encoder = self.encoder.init(encoder_rng, images, mode='batch')
    features = jnp.zeros((len(images), self.encoder.num_features))
    head = self.head.init(head_rng, features, mode='batch')
    pair = lambda collection: {'encoder': encoder.get(collection, {}),
                               'head': head.get(collection, {})}
    return pair('params'), pair('batch_stats'), self.init_classifier(rows_rng)

  def loss(self, params, batch_stats, method_state, batch, rng):
    views = batch['views'][0]
    images, count = views.shape[:2]
    valid = jnp.repeat(batch['valid'], count)
    features, batch_stats = self.project(params, batch_stats, merge_views(views), valid, mode='batch')
    unit = losses.normalise(features)
    classified = self.classify(params, method_state, unit, batch, rng)
    pairs = unit.reshape(images, count, -1)

    loss_instance = losses.masked_mean(classified.scores.loss, valid)
    loss_consistency = jnp.float32(0)
    if count > 1:
      loss_consistency = losses.masked_mean(losses.consistency(pairs), batch['valid'])
    loss = loss_instance + self.alpha * loss_consistency

    seen = jax.lax.stop_gradient(pairs)
    metrics = {
      'loss_instance': loss_instance,
      'loss_consistency': loss_consistency,
      'instance_top1': losses.masked_mean(classified.scores.correct.astype(jnp.float32), valid),
      'alignment': losses.alignment(seen, batch['valid']),
      'uniformity': losses.uniformity(seen[:, 0], batch['valid']),
      'feature_std': losses.feature_std(seen[:, 0], batch['valid']),
    }
    return loss, Aux(batch_stats, metrics, jax.lax.stop_gradient(classified))

  def update(self, method_state, aux, params, step, lr, apply):
    rows = full.update(
      method_state['rows'], aux.for_update, lr * self.sgd.lr_scale, self.softmax,
      momentum=self.sgd.momentum, weight_decay=self.sgd.weight_decay, apply=apply)
    return {**method_state, 'rows': rows}

  def encode(self, variables, images):
    own = {name: collection['encoder'] for name, collection in variables.items()}
    return self.encoder.apply(own, images, mode='frozen')

  def partition_rules(self):
    return ((r'^rows/', split(self.mesh)),)

  def project(self, params: Any, batch_stats: Any, images: jax.Array, valid: jax.Array,
              mode: str) -> tuple[jax.Array, Any]:
    """Head features float32 [M, D] of images [M, S, S, 3], and the running statistics after them."""
    features, encoder = self.encoder.apply(
      {'params': params['encoder'], 'batch_stats': batch_stats['encoder']}, images, mode=mode,
      mask=valid, mutable=['batch_stats'])
    features, head = self.head.apply(
      {'params': params['head'], 'batch_stats': batch_stats['head']}, features, mode=mode,
      mask=valid, mutable=['batch_stats'])
    return features, {'encoder': encoder.get('batch_stats', {}), 'head': head.get('batch_stats', {})}


def mean_weights(valid: jax.Array, count: int) -> jax.Array:
  """The weight of each feature in the mean over valid images and their views, float32 [M]."""
  weights = valid / jnp.maximum(valid.sum() * count, 1).astype(jnp.float32)
  return jnp.repeat(weights, count)
