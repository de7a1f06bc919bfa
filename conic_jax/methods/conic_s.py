"""ConIC-S: ConIC whose softmax is over a window of N′ classes, its other rows brought up to date on return.

The denominator of an image of class n is e^{w̄ₙᵀx̄/τ} + β Σⱼ e^{w̄ⱼᵀx̄/τ}, the sum over the window without n.
All rows of the window learn in every step; those outside are untouched until they come back. They are kept
on the devices, in the hosts' memory or on their disks (`config.classifier.store`).

Source: "Consistent Instance Classification for Unsupervised Representation Learning", §4, Appendix A.
"""
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax.classifier import full, sampled, swap, window
from conic_jax.errors import UserError
from conic_jax.methods.instance import InstanceMethod, mean_weights

STORES = ('device', 'host', 'disk')


class ConICS(InstanceMethod):
  """The method; see the module."""

  def __init__(self, config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype, *, alpha: float):
    settings = config.classifier
    self.num_slots, self.store, self.seed = settings.window, settings.store, config.seed
    self.batch_size = config.batch_size
    self.classes = window.first_classes(self.num_slots, num_instances, self.seed, self.batch_size)
    # The window holds an image's own class too: its negatives are the N′ − 1 others.
    beta = settings.beta or (num_instances - 1) / max(1, self.num_slots - 1)
    softmax = full.Softmax(self.num_slots, config.temperature, mesh, dtype, negative_weight=beta,
                           chunk_size=settings.chunk_size)
    super().__init__(config, num_instances, mesh, dtype, alpha=alpha, softmax=softmax)

  @property
  def on_device(self) -> bool:
    """Whether the rows outside the window are on the devices too."""
    return self.store == 'device'

  def init_classifier(self, rng):
    return {'window': sampled.init(rng, self.classes, self.num_instances, self.dim, self.sgd.norm,
                                   self.batch_size, self.mesh, self.on_device)}

  def classify(self, params, method_state, features, batch, rng):
    count = len(features) // len(batch['id'])
    slots = jnp.repeat(batch['exchange']['slots'], count)
    scores = full.scores(method_state['window'].rows.weights, features, slots, self.softmax)
    return full.Batch(features, slots, mean_weights(batch['valid'], count), scores)

  def exchange(self, method_state, batch, step, updates, lr):
    inside, outgoing = sampled.exchange(
      method_state['window'], batch['exchange'], step, updates, lr * self.sgd.lr_scale, norm=self.sgd.norm,
      momentum=self.sgd.momentum, weight_decay=self.sgd.weight_decay, mesh=self.mesh)
    return {'window': inside}, outgoing

  def update(self, method_state, aux, params, step, lr, apply):
    inside = method_state['window']
    rows = full.update(inside.rows, aux.for_update, lr * self.sgd.lr_scale, self.softmax,
                       momentum=self.sgd.momentum, weight_decay=self.sgd.weight_decay, apply=apply)
    return {'window': inside.replace(rows=rows)}

  def partition_rules(self):
    return sampled.partition_rules(self.mesh, self.on_device)

  def exchange_inputs(self, batch_size):
    return sampled.inputs(batch_size, self.dim, self.mesh, self.on_device)

  def companion(self, run):
    return swap.Swap(run, self.mesh, kind=self.store, num_instances=self.num_instances,
                     dim=self.dim, seed=self.seed, norm=self.sgd.norm,
                     momentum=self.sgd.momentum, weight_decay=self.sgd.weight_decay)


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> InstanceMethod:
  """Makes it with the settings of `config`."""
  return sampled_method(config, num_instances, mesh, dtype, alpha=config.alpha)


def sampled_method(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype, *,
                   alpha: float) -> InstanceMethod:
  """A method on the sampled classifier; on all classes where the window would hold more than these.

  Args:
    config, num_instances, mesh, dtype: as for `make`.
    alpha: α, the weight of the consistency loss.

  Raises:
    UserError: for a store that there is not, or a window smaller than the batch.
  """
  settings = config.classifier
  if settings.store not in STORES:
    raise UserError(f"config.classifier.store is '{settings.store}'; there is: {', '.join(STORES)}.")
  if settings.beta < 0:
    raise UserError(f'config.classifier.beta is {settings.beta}: the weight of the negatives is above 0, or '
                    '0 for (N − 1)/(N′ − 1).')
  if settings.window > num_instances:
    method = InstanceMethod(config, num_instances, mesh, dtype, alpha=alpha)
    method.notice = (f'config.classifier.window is {settings.window} and there are {num_instances} images: '
                     'the softmax is over all of them')
    return method
  return ConICS(config, num_instances, mesh, dtype, alpha=alpha)
