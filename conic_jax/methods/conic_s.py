"""ConIC-S: ConIC with its softmax over a window of N′ classes; returning rows get the updates they missed.

The denominator of an image of class n is e^{w̄ₙᵀx̄/τ} + β Σⱼ e^{w̄ⱼᵀx̄/τ}, the sum over the window without n.
All rows of the window learn in every step; those outside stay untouched until they return. They are stored on
the devices, in the hosts' memory or on their disks (`config.classifier.store`).

Source: "Consistent Instance Classification for Unsupervised Representation Learning", §4, Appendix A.
"""
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax.errors import UserError
from conic_jax.losses import partitioned
from conic_jax.memories import window
from conic_jax.memories.instance_rows import Classified
from conic_jax.memories.windowed_rows import STORES, WindowedRows
from conic_jax.methods.instance import InstanceMethod, mean_weights, rows_sgd
from conic_jax.methods.method import softmax_kernel


class ConICS(InstanceMethod):
  """The method; see the module."""
  rows = 'window'

  def __init__(self, config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype, *, alpha: float):
    settings = config.classifier
    window.check(settings.window, config.batch_size)
    # The window includes an image's own class: its negatives are the N′ − 1 others.
    beta = settings.beta or (num_instances - 1) / max(1, settings.window - 1)
    softmax = partitioned.Softmax(settings.window, config.temperature, mesh, dtype, negative_weight=beta,
                                  chunk_size=settings.chunk_size, kernel=softmax_kernel(config))
    super().__init__(config, num_instances, mesh, dtype, alpha=alpha, softmax=softmax)
    self.memories = {'window': WindowedRows(softmax, rows_sgd(settings), num_instances, self.dim,
                                            settings.store, config.batch_size, config.seed)}

  def classify(self, params, memories, features, batch, rng):
    count = len(features) // len(batch['id'])
    slots = jnp.repeat(batch['host_inputs']['window']['slots'], count)
    scores = partitioned.scores(memories['window'].rows.weights, features, slots, self.softmax)
    return Classified(features, slots, mean_weights(batch['valid'], count), scores)


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> InstanceMethod:
  """Creates the method from `config`."""
  return sampled_method(config, num_instances, mesh, dtype, alpha=config.alpha)


def sampled_method(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype, *,
                   alpha: float) -> InstanceMethod:
  """A method on the sampled classifier; over all classes if the window is larger than their number.

  Args:
    config, num_instances, mesh, dtype: as for `make`.
    alpha: α, the weight of the consistency loss.

  Raises:
    UserError: for an unknown store, a negative β, or a window smaller than the batch.
  """
  settings = config.classifier
  if settings.store not in STORES:
    raise UserError(f"config.classifier.store is '{settings.store}'; available: {', '.join(STORES)}.")
  if settings.beta < 0:
    raise UserError(f'config.classifier.beta is {settings.beta}: the weight of the negatives is above 0, or '
                    '0 for (N − 1)/(N′ − 1).')
  if settings.window > num_instances:
    method = InstanceMethod(config, num_instances, mesh, dtype, alpha=alpha)
    method.notice = (f'config.classifier.window is {settings.window} and there are {num_instances} images: '
                     'the softmax is over all of them')
    return method
  return ConICS(config, num_instances, mesh, dtype, alpha=alpha)
