"""Rows of the sampled classifier: a window of N′ classes on the devices, and a store of all others."""
import dataclasses

import jax

from conic_jax.losses import partitioned
from conic_jax.memories import device_window
from conic_jax.memories.host_rows import HostRows
from conic_jax.memories.instance_rows import RowsSgd, learn
from conic_jax.memories.memory import HostedMemory
from conic_jax.memories.window import first_classes

STORES = ('device', 'host', 'disk')


@dataclasses.dataclass(frozen=True)
class WindowedRows(HostedMemory):
  """A window over the rows: those of N′ classes learn in every step, the others wait in a store.

  The loss passes a `Classified` whose ids are the slots of the batch's classes.

  Attributes:
    softmax: settings of the softmax over the window; its `num_instances` is N′.
    sgd: settings of the rows' SGD.
    num_instances: N; dim: D.
    store: where the other rows are stored, one of `STORES`.
    batch_size: B.
    seed: the run's seed, for the first window.
  """
  softmax: partitioned.Softmax
  sgd: RowsSgd
  num_instances: int
  dim: int
  store: str
  batch_size: int
  seed: int

  @property
  def on_device(self) -> bool:
    """Whether the rows outside the window are on the devices too."""
    return self.store == 'device'

  def init(self, rng: jax.Array) -> device_window.Window:
    """The window before the first step."""
    classes = first_classes(self.softmax.num_instances, self.num_instances, self.seed, self.batch_size)
    return device_window.init(rng, classes, self.num_instances, self.dim, self.sgd.norm, self.batch_size,
                              self.softmax.mesh, self.on_device)

  def update(self, state, seen, params, step, lr, applied):
    return state.replace(rows=learn(state.rows, seen, lr, self.softmax, self.sgd, applied))

  def partition_rules(self):
    return device_window.partition_rules(self.softmax.mesh, self.on_device)

  def host_inputs(self, batch_size):
    return device_window.inputs(batch_size, self.dim, self.softmax.mesh, self.on_device)

  def exchange(self, state, inputs, step, updates, lr):
    return device_window.exchange(
      state, inputs, step, updates, lr * self.sgd.lr_scale, sgd=self.sgd, mesh=self.softmax.mesh)

  def host(self, settings):
    return HostRows(settings, self.softmax.mesh, kind=self.store, num_instances=self.num_instances,
                    dim=self.dim, seed=self.seed, sgd=self.sgd)
