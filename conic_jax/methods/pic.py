"""PIC: instance classification of one view an image, on the classes of the most recent images.

L = −mean log(e^{cos(wₙ, x)/τ} / Σⱼ e^{cos(wⱼ, x)/τ}), the sum over the N′ most recent classes

Recent negative sampling and weight correction are ConIC-S's window with β = 1 and without its consistency
loss: all rows of the window learn in every step, and a row that comes back is first brought to where weight
decay and momentum would have taken it, in the closed form of `memories/delayed.py`. The sliding windows
of images are the sampler's (`config.sampler`), multi-crop is `config.small_views`.

Source: Cao et al. (2020), Parametric Instance Classification for Unsupervised Visual Feature Learning.
"""
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax.methods import conic_s
from conic_jax.methods.instance import InstanceMethod


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> InstanceMethod:
  """Makes it with the settings of `config`; raises as ConIC-S."""
  return conic_s.sampled_method(config, num_instances, mesh, dtype, alpha=0.0)
