"""What most methods train, an encoder with a projection head, and metrics of its features."""
from typing import Any

import jax
import jax.numpy as jnp

from conic_jax import losses, models


class Network:
  """Encoder and head as one function of {'encoder', 'head'} parameters and statistics.

  Attributes:
    encoder: the ResNet of `config.encoder`.
    head: the MLP of `config.head`.
  """

  def __init__(self, config: Any, dtype: jnp.dtype, groups: int = 1, norm_output: bool = True):
    self.encoder = models.build_encoder(config.encoder, dtype, groups)
    head = config.head
    self.head = models.MLP(head.hidden, head.features, head.norm, norm_output, groups, dtype,
                           head.output_bias)

  def init(self, encoder_rng: jax.Array, head_rng: jax.Array, images: jax.Array
           ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Creates (params, batch_stats) for images [M, S, S, 3]."""
    encoder = self.encoder.init(encoder_rng, images, mode='batch')
    head = self.head.init(head_rng, jnp.zeros((len(images), self.encoder.num_features)), mode='batch')
    pair = lambda collection: {'encoder': encoder.get(collection, {}), 'head': head.get(collection, {})}
    return pair('params'), pair('batch_stats')

  def maps(self, params: Any, batch_stats: Any, images: jax.Array, valid: jax.Array, mode: str,
           members: jax.Array | None = None) -> tuple[Any, Any]:
    """Runs the encoder alone.

    Args:
      params, batch_stats: as from `init`.
      images: float32 [M, S, S, 3].
      valid: bool [M]; False keeps an image out of the batch-norm statistics.
      mode: batch-norm mode; members: int32 [M], each image's group if the mode is 'grouped' and the groups
        are not consecutive.

    Returns:
      The mapping of `ResNet` with its stages, and the statistics after the batch.
    """
    maps, updated = self.encoder.apply(
      {'params': params['encoder'], 'batch_stats': batch_stats['encoder']}, images, mode=mode, mask=valid,
      members=members, stages=True, mutable=['batch_stats'])
    return maps, {**batch_stats, 'encoder': updated.get('batch_stats', {})}

  def head_of(self, params: Any, batch_stats: Any, features: jax.Array, valid: jax.Array, mode: str,
              members: jax.Array | None = None) -> tuple[jax.Array, Any]:
    """Runs the head alone, as `maps`: float32 [M, D] from pooled features [M, F]."""
    projected, updated = self.head.apply(
      {'params': params['head'], 'batch_stats': batch_stats['head']}, features, mode=mode, mask=valid,
      members=members, mutable=['batch_stats'])
    return projected, {**batch_stats, 'head': updated.get('batch_stats', {})}

  def project(self, params: Any, batch_stats: Any, images: jax.Array, valid: jax.Array, mode: str,
              members: jax.Array | None = None) -> tuple[jax.Array, Any]:
    """Runs encoder and head, as `maps`: float32 [M, D], and the statistics after the batch."""
    maps, batch_stats = self.maps(params, batch_stats, images, valid, mode, members)
    return self.head_of(params, batch_stats, maps['features'], valid, mode, members)

  def encode(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
    """Pooled features float32 [M, F] under the running statistics: the encoder as kept after training."""
    own = {name: collection['encoder'] for name, collection in variables.items()}
    return self.encoder.apply(own, images, mode='frozen')  # pyright: ignore[reportReturnType]

  def embed(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
    """The head's features float32 [M, D] under the running statistics, from those of `encode`."""
    own = {name: collection['head'] for name, collection in variables.items()}
    return self.head.apply(own, self.encode(variables, images), mode='frozen')  # pyright: ignore[reportReturnType]


def merge_views(views: jax.Array) -> jax.Array:
  """[B, V, ...] to [B·V, ...], image-major, so that images stay on their device."""
  return views.reshape(-1, *views.shape[2:])


def pair_metrics(first: jax.Array, second: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
  """Alignment of two views of an image, uniformity and spread of the first: float32 [B, D] of unit norm."""
  first, second = jax.lax.stop_gradient((first, second))
  return {'alignment': losses.alignment(jnp.stack([first, second], axis=1), valid),
          'uniformity': losses.uniformity(first, valid), 'feature_std': losses.feature_std(first, valid)}
