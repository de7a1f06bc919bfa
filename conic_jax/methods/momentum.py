"""What the methods with a momentum encoder and a queue of keys share: MoCo's step.

  k = f(x'; θk), without gradient;  θk ← m θk + (1 − m) θq

The keys of a step come from the average that already has the queries' encoder as it is before the step's
update: so the average is taken at the end of each step, of the encoder after its update.
"""
import abc
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax import losses, memory
from conic_jax.errors import UserError
from conic_jax.methods.base import Aux, Method
from conic_jax.methods.network import Network
from conic_jax.views import Views


class MomentumMethod(Method):
  """A query against its key and the queue; what is made of them is `contrast`'s.

  Batch norm is over groups of the batch, on any number of devices, and the keys' groups are drawn anew in
  each step, so that statistics do not tell a query which key is its own (`config.batch_norm`). No image moves
  for it.

  The method state is {'key': {'params', 'batch_stats'}, 'queue'}.
  """

  def __init__(self, config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype):
    check_queue(config.queue.size, config.batch_size, 'config.queue.size')
    self.groups, self.shuffle = config.batch_norm.groups, config.batch_norm.shuffle
    check_groups(self.groups, config.batch_size)
    self.mode = 'grouped' if self.groups else 'batch'
    self.network = Network(config, dtype, max(1, self.groups))
    self.views: tuple[Views, ...] = (Views(**config.views),)
    if self.views[0].count != 2:
      raise UserError(f'config.views.count is {self.views[0].count}: {config.method} takes two views of an '
                      'image, a query and a key; set it to 2.')
    self.queue, self.momentum = config.queue, config.momentum
    self.dim, self.mesh = config.head.features, mesh
    self.total_steps = config.epochs * max(1, num_instances // config.batch_size)

  @abc.abstractmethod
  def contrast(self, queries: jax.Array, keys: jax.Array, queue: memory.Queue, batch: dict[str, Any]
               ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of the queries, and what to report.

    Args:
      queries, keys: float32 [B, D] of unit norm; keys carry no gradient.
      queue: before this step's keys enter.
      batch: as for `Method.loss`.

    Returns:
      The mean over valid images, [], and scalars by name.
    """

  # ---- What they share -----------------------------------------------------------------------------

  def negatives(self, queue: memory.Queue, queries: jax.Array, temperature: float, batch: dict[str, Any]
                ) -> jax.Array:
    """The logits [B, K'] of queries with the queue, without those of the own image if so asked."""
    ids = batch['id'] if self.queue.mask_own else None
    return memory.negative_logits(queue, queries, temperature, self.mesh, ids)

  def members(self, rng: jax.Array, size: int) -> jax.Array | None:
    """The batch-norm groups of the keys, shuffled: int32 [B]."""
    if not (self.groups and self.shuffle):
      return None
    return jax.random.permutation(rng, jnp.arange(size, dtype=jnp.int32) // (size // self.groups))

  # ---- The contract --------------------------------------------------------------------------------

  def init(self, rng, batch):
    encoder_rng, head_rng, queue_rng = jax.random.split(rng, 3)
    params, batch_stats = self.network.init(encoder_rng, head_rng, batch['views'][0][:, 0])
    queue = memory.init_queue(queue_rng, self.queue.size, self.dim, self.mesh, self.queue.split)
    return params, batch_stats, {'key': {'params': params, 'batch_stats': batch_stats}, 'queue': queue}

  def loss(self, params, batch_stats, method_state, batch, rng):
    views, valid, key_encoder = batch['views'][0], batch['valid'], method_state['key']
    queries, batch_stats = self.network.project(params, batch_stats, views[:, 0], valid, self.mode)
    keys, key_stats = jax.lax.stop_gradient(self.network.project(
      key_encoder['params'], key_encoder['batch_stats'], views[:, 1], valid, self.mode,
      self.members(rng, len(valid))))
    queries, keys = losses.normalise(queries), losses.normalise(keys)
    loss, metrics = self.contrast(queries, keys, method_state['queue'], batch)
    metrics |= pair_metrics(queries, keys, valid)
    pushed = {'keys': keys, 'ids': batch['id'], 'valid': valid}
    return loss, Aux(batch_stats, metrics, {'batch_stats': key_stats, 'push': pushed})

  def update(self, method_state, aux, params, step, lr, apply):
    key_encoder = self.next_key_encoder(method_state['key'], aux, params, step, apply)
    queue = memory.push(method_state['queue'], **aux.for_update['push'], mesh=self.mesh, apply=apply)
    return {**method_state, 'key': key_encoder, 'queue': queue}

  def next_key_encoder(self, key_encoder: Any, aux: Aux, params: Any, step: jax.Array,
                       apply: jax.Array) -> Any:
    """The momentum encoder of the next step, with its own batch-norm statistics."""
    momentum = memory.ema_momentum(self.momentum.start, self.momentum.schedule, step, self.total_steps)
    after = {'params': memory.ema(key_encoder['params'], params, momentum),
             'batch_stats': aux.for_update['batch_stats']}
    return jax.tree.map(lambda new, old: jnp.where(apply, new, old), after, key_encoder)

  def encode(self, variables, images):
    return self.network.encode(variables, images)

  def partition_rules(self):
    return memory.queue_rules(self.mesh) if self.queue.split else ()


def pair_metrics(queries: jax.Array, keys: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
  """Alignment of the two views of an image, uniformity and spread of the first."""
  queries, keys = jax.lax.stop_gradient((queries, keys))
  return {'alignment': losses.alignment(jnp.stack([queries, keys], axis=1), valid),
          'uniformity': losses.uniformity(queries, valid),
          'feature_std': losses.feature_std(queries, valid)}


def check_queue(size: int, batch_keys: int, field: str) -> None:
  """Raises a `UserError` where a queue cannot take in the keys of one batch."""
  if size < batch_keys:
    raise UserError(f'{field} is {size}, smaller than the {batch_keys} keys of a batch: set it to at least '
                    'that, or make config.batch_size smaller.')


def check_groups(groups: int, batch_size: int) -> None:
  """Raises a `UserError` where batch-norm groups do not divide the batch."""
  if groups < 0 or (groups and batch_size % groups):
    raise UserError(f'config.batch_norm.groups {groups} does not divide config.batch_size {batch_size}: set '
                    'one of them so that it does, or the groups to 0 for batch norm over the whole batch.')
