"""The table of every class's hardest classes, recomputed before each epoch."""
import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax.hardware.mesh import split
from conic_jax.losses import hardest, hardest_tiles
from conic_jax.memories.instance_rows import padded_rows
from conic_jax.memories.memory import Memory


@dataclasses.dataclass(frozen=True)
class HardestTable(Memory):
  """The K hardest classes of each class, by the rows at the start of an epoch: int32 [N', K].

  Attributes:
    num_instances: N; k: K.
    mesh: the mesh that rows and table are split over.
    seed: of the approximate search; None for the exact one.
    rows: the name of the memory that holds the rows.
  """
  num_instances: int
  k: int
  mesh: Mesh
  seed: int | None = None
  rows: str = 'rows'
  prepares_epochs = True

  def init(self, rng: jax.Array) -> jax.Array:
    """A table of zeros, before the first epoch."""
    del rng
    return jnp.zeros((padded_rows(self.num_instances, self.mesh.size), self.k), jnp.int32)

  def before_epoch(self, memories, name):
    weights = memories[self.rows].weights
    sizes = {'num_instances': self.num_instances, 'k': self.k, 'mesh': self.mesh}
    if self.seed is None:
      return hardest.table(weights, **sizes)
    return hardest_tiles.table(weights, **sizes, key=jax.random.key(self.seed))

  def partition_rules(self):
    return (('', split(self.mesh)),)
