"""Exemplar-CNN with the cosine softmax: instance classification alone, ConIC at α = 0.

Source: Dosovitskiy et al. (2016), as ConIC §3.1 writes it and trains it in its own setting (§5).
"""
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax.methods.instance import InstanceMethod


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> InstanceMethod:
  """Makes it with the settings of `config`."""
  return InstanceMethod(config, num_instances, mesh, dtype, alpha=0.0)
