"""AlignUniform: alignment of the views of an image, and uniformity of all features, with MoCo's queue.

L = a·E ‖q − k₊‖² + u·log E e^{−t ‖q − y‖²}, y over the keys of the queue and the other queries of the batch

Source: "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere" (Wang and Isola 2020), §5, with α = 2.
"""
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax import losses
from conic_jax.methods.method import check_positive
from conic_jax.methods.momentum import MomentumMethod


class AlignUniform(MomentumMethod):
  """The method; see the module."""
  undivided = 'its uniformity is the logarithm of a mean over the pairs of images of a batch'

  def __init__(self, config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype):
    super().__init__(config, num_instances, mesh, dtype)
    self.weights = config.align_uniform

  def contrast(self, queries, keys, queue, batch):
    valid, t = batch['valid'], self.weights.t
    alignment = losses.alignment(jnp.stack([queries, keys], axis=1), valid)
    key_logits = 2 * t * self.cosines(queue, queries, batch['id'])
    uniformity = losses.queue_uniformity(queries, valid, key_logits, t)
    loss = self.weights.align * alignment + self.weights.uniform * uniformity
    return loss, {'loss_uniformity': uniformity}


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> AlignUniform:
  """Creates the method from `config`.

  Raises:
    UserError: if the kernel's t is not positive.
  """
  check_positive(config.align_uniform.t, 'config.align_uniform.t')
  return AlignUniform(config, num_instances, mesh, dtype)
