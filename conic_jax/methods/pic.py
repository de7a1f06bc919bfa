"""PIC: instance classification of one view per image, over the classes of the most recent images.

L = −mean log(e^{cos(wₙ, x)/τ} / Σⱼ e^{cos(wⱼ, x)/τ}), the sum over the N′ most recent classes

Recent negative sampling and weight correction are ConIC-S's window with β = 1 and without its consistency
loss: all rows of the window learn in every step, and a returning row first gets the updates of weight decay
and momentum that it missed, in the closed form of `memories/delayed.py`. The sliding windows of images belong
to the sampler (`config.sampler`); multi-crop is `config.small_views`.

Source: Cao et al. (2020), Parametric Instance Classification for Unsupervised Visual Feature Learning.
"""
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax.methods import conic_s
from conic_jax.methods.instance import InstanceMethod


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> InstanceMethod:
  """Creates the method from `config`; raises as ConIC-S."""
  return conic_s.sampled_method(config, num_instances, mesh, dtype, alpha=0.0)
