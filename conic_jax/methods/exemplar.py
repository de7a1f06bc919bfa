"""Exemplar-CNN with the cosine softmax: instance classification alone, ConIC at α = 0.

Source: Dosovitskiy et al. (2016), in the form of ConIC §3.1 and trained in ConIC's setting (§5).
"""
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax.methods.instance import InstanceMethod


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> InstanceMethod:
  """Creates the method from `config`."""
  return InstanceMethod(config, num_instances, mesh, dtype, alpha=0.0)
