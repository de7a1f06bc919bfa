"""Shared by the methods with a momentum encoder and a queue of keys: MoCo's step.

  k = f(x'; θk), without gradient;  θk ← m θk + (1 − m) θq
"""
import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax import losses
from conic_jax.errors import UserError
from conic_jax.memories import key_queue
from conic_jax.memories.key_queue import KeyQueue, Queue
from conic_jax.memories.momentum_encoder import MomentumEncoder
from conic_jax.methods.method import Aux, DecomposedMethod, total_steps
from conic_jax.methods.network import Network, pair_metrics
from conic_jax.views import Views


class Pairs(NamedTuple):
  """A batch's two views, seen by the two encoders. Everything from the key encoder carries no gradient.

  Attributes:
    queries, keys: float32 [B, D] of unit norm.
    query_maps, key_maps: feature maps of the networks, by stage.
    batch_stats, key_stats: their batch-norm statistics after the batch.
  """
  queries: jax.Array
  keys: jax.Array
  query_maps: Any
  key_maps: Any
  batch_stats: Any
  key_stats: Any


class MomentumMethod(DecomposedMethod):
  """Contrasts a query with its key and the queue, by the loss that `contrast` defines.

  Batch norm is over groups of the batch, on any number of devices. The keys' groups are redrawn in each step,
  so that the statistics do not reveal to a query which key is its own (`config.batch_norm`). No image moves
  to another device for this.

  The memories are 'key', the momentum encoder, and 'queue'.
  """

  def __init__(self, config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype):
    self.groups, self.shuffle = config.batch_norm.groups, config.batch_norm.shuffle
    check_groups(self.groups, config.batch_size, config.get('accumulate', 1))
    self.mode = 'grouped' if self.groups else 'batch'
    self.network = Network(config, dtype, max(1, self.groups))
    self.views: tuple[Views, ...] = (Views(**config.views),)
    if self.views[0].count != 2:
      raise UserError(f'config.views.count is {self.views[0].count}: {config.method} takes two views of an '
                      'image, a query and a key; set it to 2.')
    self.mesh, self.mask_own, queue = mesh, config.queue.mask_own, config.queue
    self.key = MomentumEncoder(**config.momentum, total_steps=total_steps(config, num_instances))
    self.queue = KeyQueue(queue.size, config.head.features, mesh, queue.split, 'config.queue.size',
                          config.batch_size)
    self.memories = {'key': self.key, 'queue': self.queue}

  @abc.abstractmethod
  def contrast(self, queries: jax.Array, keys: jax.Array, queue: Queue, batch: dict[str, Any]
               ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of the queries, and metrics.

    Args:
      queries, keys: float32 [B, D] of unit norm; keys carry no gradient.
      queue: the queue before this step's keys enter.
      batch: as for `Method.loss`.

    Returns:
      The mean over valid images, [], and scalars by name.
    """

  # ---- Shared --------------------------------------------------------------------------------------

  def cosines(self, queue: Queue, vectors: jax.Array, ids: jax.Array) -> jax.Array:
    """Cosines [B, K'] of vectors [B, D] with the queue, with the image's own keys masked if configured."""
    return key_queue.cosines(queue, vectors, self.mesh, ids if self.mask_own else None)

  def members(self, rng: jax.Array, size: int) -> jax.Array | None:
    """Shuffled batch-norm groups of the keys, int32 [B]; None if they are not shuffled."""
    if not (self.groups and self.shuffle):
      return None
    return jax.random.permutation(rng, jnp.arange(size, dtype=jnp.int32) // (size // self.groups))

  def pairs(self, params: Any, batch_stats: Any, key_encoder: Any, batch: dict[str, Any], rng: jax.Array
            ) -> Pairs:
    """Encodes both views of the batch."""
    views, valid = batch['views'][0], batch['valid']
    query_maps, batch_stats = self.network.maps(params, batch_stats, views[:, 0], valid, self.mode)
    queries, batch_stats = self.network.head_of(params, batch_stats, query_maps['features'], valid, self.mode)
    members, own = self.members(rng, len(valid)), key_encoder['params']
    key_maps, key_stats = self.network.maps(
      own, key_encoder['batch_stats'], views[:, 1], valid, self.mode, members)
    keys, key_stats = self.network.head_of(own, key_stats, key_maps['features'], valid, self.mode, members)
    keys, key_maps, key_stats = jax.lax.stop_gradient((losses.normalise(keys), key_maps, key_stats))
    return Pairs(losses.normalise(queries), keys, query_maps, key_maps, batch_stats, key_stats)

  # ---- The contract --------------------------------------------------------------------------------

  def init(self, rng, batch):
    encoder_rng, head_rng, queue_rng = jax.random.split(rng, 3)
    params, batch_stats = self.network.init(encoder_rng, head_rng, batch['views'][0][:, 0])
    states = {'key': self.key.init(params, batch_stats), 'queue': self.queue.init(queue_rng)}
    return params, batch_stats, states

  def embed(self, params, batch_stats, memories, batch, rng):
    pairs = self.pairs(params, batch_stats, memories['key'], batch, rng)
    return (pairs.queries, pairs.keys), (pairs.batch_stats, pairs.key_stats)

  def loss_of(self, params, embedded, statistics, memories, batch, rng):
    del params, rng
    (queries, keys), (batch_stats, key_stats) = embedded, statistics
    keys = jax.lax.stop_gradient(keys)
    loss, metrics = self.contrast(queries, keys, memories['queue'], batch)
    metrics |= pair_metrics(queries, keys, batch['valid'])
    pushed = {'keys': keys, 'ids': batch['id'], 'valid': batch['valid']}
    return loss, Aux(batch_stats, metrics, {'key': key_stats, 'queue': pushed})


def check_groups(groups: int, batch_size: int, parts: int = 1) -> None:
  """Raises a `UserError` if batch-norm groups do not divide a part of the batch, or have one image each."""
  if parts > 1 and groups > 0 and batch_size // parts % groups:
    raise UserError(f'config.batch_norm.groups {groups} does not divide the {batch_size // parts} images of '
                    f'a part, config.batch_size {batch_size} over config.accumulate {parts}: set one of them '
                    'so that it does, or the groups to 0 for batch norm over the whole part.')
  batch_size //= parts
  if groups < 0 or (groups and batch_size % groups):
    raise UserError(f'config.batch_norm.groups {groups} does not divide config.batch_size {batch_size}: set '
                    'one of them so that it does, or the groups to 0 for batch norm over the whole batch.')
  if groups == batch_size:
    raise UserError(f'config.batch_norm.groups {groups} leaves one image of the batch to a group: set it to '
                    f'at most {batch_size // 2}.')
