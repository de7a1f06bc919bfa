"""ConIC: instance classification over all images, with a consistency loss between an image's views.

Source: "Consistent Instance Classification for Unsupervised Representation Learning", §3.2, §4.
"""
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax.methods.instance import InstanceMethod


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> InstanceMethod:
  """Creates the method from `config`."""
  return InstanceMethod(config, num_instances, mesh, dtype, alpha=config.alpha)
