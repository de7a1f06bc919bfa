"""InstDisc's bank: past features of the images, and the normaliser of its noise-contrastive loss."""
import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax import losses
from conic_jax.hardware import local_rows
from conic_jax.hardware.mesh import split
from conic_jax.memories.instance_rows import padded_rows
from conic_jax.memories.memory import Memory


@dataclasses.dataclass(frozen=True)
class Bank(Memory):
  """vᵢ ← m vᵢ + (1 − m) f, then normalised, for the images of the batch.

  The state is float32 [N', D], split over the mesh. The loss passes 'features' float32 [B, D] of unit norm,
  'ids' int32 [B] and 'writes' bool [B], False for an image whose row stays unchanged.

  Attributes:
    num_instances: N; dim: D.
    momentum: m.
    mesh: the mesh.
  """
  num_instances: int
  dim: int
  momentum: float
  mesh: Mesh

  def init(self, rng: jax.Array) -> jax.Array:
    """The bank before the first step."""
    return init_bank(rng, padded_rows(self.num_instances, self.mesh.size), self.dim)

  def update(self, state, seen, params, step, lr, applied):
    own = local_rows.read(state, seen['ids'], self.mesh)
    mixed = losses.normalise(self.momentum * own + (1 - self.momentum) * seen['features'])
    return local_rows.write(state, jnp.where(seen['writes'] & applied, seen['ids'], -1), mixed, self.mesh)

  def partition_rules(self):
    return (('', split(self.mesh)),)


class Normaliser(Memory):
  """Z, float32 []: 0 until the loss first estimates it, then the value that the loss passes."""

  def init(self) -> jax.Array:
    """Z before its estimate."""
    return jnp.float32(0)

  def update(self, state, seen, params, step, lr, applied):
    return jnp.where(applied, seen, state)


def init_bank(rng: jax.Array, num_rows: int, dim: int) -> jax.Array:
  """Initial bank: uniform within ±√(3/D), so that squared norms are 1 on average; float32 [N', D].

  Each row depends on (rng, row) alone. Source: InstDisc's public code.
  """
  bound = (3 / dim) ** 0.5
  row = lambda n: jax.random.uniform(jax.random.fold_in(rng, n), (dim,), minval=-bound, maxval=bound)
  return jax.vmap(row)(jnp.arange(num_rows))
