"""Host side of the sampled classifier: which rows enter the window, from where, and which leave.

One worker does all the work, in the order of the steps and ahead of them: it advances the window by the ids
that the sampler will yield, reads the rows that enter and writes those that left. Its reads for step t need
no outputs later than those of step t − R; rows evicted since are still on the device.
"""
import collections
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from conic_jax.hardware import mesh as meshes
from conic_jax.hardware.processes import run_everywhere
from conic_jax.memories import device_window
from conic_jax.memories.copied_folder import CopiedFolder, CopiedStore
from conic_jax.memories.delayed import Rates
from conic_jax.memories.device_window import FRESH, HOST_LAG, NO_SLOT, OUTSIDE, RECENT
from conic_jax.memories.host import HostSettings, HostSide, NotCopied
from conic_jax.memories.instance_rows import RowsSgd
from conic_jax.memories.row_store import Layout, Store, Stored
from conic_jax.memories.store_folder import StoreFolder
from conic_jax.memories.window import Swaps, WindowClasses

# Steps prepared ahead. Fewer than R, so that the outputs that a step waits for have been received.
_STEPS_AHEAD = 3


class HostRows(HostSide):
  """Host side of `WindowedRows`, whose state is a `device_window.Window`."""

  def __init__(self, settings: HostSettings, mesh: Mesh, *, kind: str, num_instances: int, dim: int,
               seed: int, sgd: RowsSgd):
    """Starts no work yet.

    Args:
      settings: the run's settings.
      mesh: the mesh that the window's rows are split over.
      kind: where the rows outside the window are stored: 'device', 'host' or 'disk'.
      num_instances: N.
      dim: D.
      seed: the run's seed.
      sgd: settings of the rows' SGD.
    """
    self._settings, self._mesh, self._kind = settings, mesh, kind
    self._sgd = {'momentum': sgd.momentum, 'weight_decay': sgd.weight_decay}
    self.depends_on = {'store': kind, 'norm': sgd.norm, **self._sgd}
    # The process that stores a row describes it to the device; the first does so for rows stored on the
    # device.
    count = 1 if kind == 'device' else jax.process_count()
    self._layout = Layout(num_instances, dim, seed, jax.process_index(), count)
    self._at_the_end = contextlib.ExitStack()
    self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix='host rows')
    self._prepared: collections.deque[Future] = collections.deque()
    self._failure: Exception | None = None

  def start(self, state, step, fresh):
    window: device_window.Window = state
    settings = self._settings
    folder_type = StoreFolder if settings.remote is None else CopiedFolder
    self._folder = folder_type(settings, self._kind, self._layout, self.depends_on)
    if fresh:
      self._folder.begin()
    else:
      # The device sends the last step's learning rate with the next exchange.
      done = max(0, step - 1) if len(self._layout.ids) else 0  # A process without rows needs no rates.
      self._folder.check(step, done)  # Damage is told before the store is brought back to this step.
    if isinstance(window.outside, device_window.DeviceStore):
      store = _SeenOnDevice(window.outside, self._mesh)
    else:
      store = self._folder.open(None if fresh else step)
      self._at_the_end.callback(store.close)
    rates = self._folder.rates(**self._sgd)
    self._at_the_end.callback(rates.close)
    inside = WindowClasses(np.asarray(window.classes), np.asarray(window.renewed), self._layout.num_instances)
    self._rows = _RowsWorker(inside, store, rates, self._layout, settings, self._mesh)
    self._next = step
    for _ in range(_STEPS_AHEAD):
      self._prepare_next()

  def inputs(self, step):
    del step  # Steps come in order.
    inputs = self._prepared.popleft().result()
    self._prepare_next()
    return inputs

  def receive(self, step, outputs):
    for leaf in jax.tree.leaves(outputs):
      leaf.copy_to_host_async()
    self._rows.outputs.append((step, outputs))

  def sync(self, step, kept):
    synced = self._submit(self._rows.sync, step, kept)
    if self._settings.remote is None:
      synced.result()
      self._submit(self._folder.sync, step, kept).result()
    else:
      run_everywhere(synced.result)
      _agree(self._submit(self._folder.sync, step, kept).result())

  def close(self):
    self._worker.shutdown(wait=True, cancel_futures=True)
    self._at_the_end.close()

  def _prepare_next(self) -> None:
    if self._next < self._settings.last_step:
      self._prepared.append(self._submit(self._rows.inputs, self._next))
      self._next += 1

  def _submit(self, work: Callable, *arguments: Any) -> Future:
    """Queues work for the worker; after a failure every later task raises it again."""
    def guarded():
      if self._failure:
        raise self._failure
      try:
        return work(*arguments)
      except Exception as error:
        self._failure = error
        raise
    return self._worker.submit(guarded)


class _RowsWorker:
  """The worker's tasks, in order: `inputs` of one step after another, and `sync` at checkpoints.

  The `exchange` of step t outputs the evicted rows, exact before the update of t, and the learning rate of
  the previous step: so R steps after its eviction a row is in the store, and every learning rate since then
  is in the log.
  """

  def __init__(self, window: WindowClasses, store: 'Store | CopiedStore | _SeenOnDevice', rates: Rates,
               layout: Layout, settings: HostSettings, mesh: Mesh):
    self._window, self._store, self._rates = window, store, rates
    self._layout, self._settings, self._mesh = layout, settings, mesh
    # Received outputs that are not stored yet: (step, outputs).
    self.outputs: collections.deque[tuple[int, Any]] = collections.deque()
    # Classes evicted in each of the last steps; and for each of these classes the step and swap of its
    # eviction.
    self._leaving: dict[int, np.ndarray] = {}
    self._recent: dict[int, tuple[int, int]] = {}
    self._zeros: dict[tuple, jax.Array] = {}

  def inputs(self, step: int) -> dict[str, jax.Array]:
    """Host inputs of `device_window.exchange` in this step."""
    self._keep(step - HOST_LAG)
    self._forget(step - HOST_LAG - 1)
    swaps = self._window.advance(step, self._settings.batch_ids(step))
    parts = self._arrivals(step, swaps.entering)
    self._leaving[step] = swaps.leaving
    self._recent |= {name: (step, index) for index, name in enumerate(swaps.leaving.tolist())}
    return self._known_to_all(swaps) | {name: self._part(values) for name, values in parts.items()}

  def sync(self, step: int, kept: Sequence[int]) -> None:
    """Syncs the store and the rates with the state after `step` steps."""
    self._keep(step - 1)
    self._rates.checkpoint()
    self._store.checkpoint(step, kept)

  def _keep(self, last: int) -> None:
    """Stores the outputs of the steps up to this one."""
    while self.outputs and self.outputs[0][0] <= last:
      step, outputs = self.outputs.popleft()
      if step:
        self._rates.append(float(np.asarray(outputs['rate'])))
      leaving = self._leaving[step]
      mine = self._mine(leaving)
      rows = np.asarray(outputs['rows'])[mine] if 'rows' in outputs else np.empty((len(mine), 2, 0))
      self._store.write(leaving[mine], rows, np.full(len(mine), step))

  def _forget(self, step: int) -> None:
    """Drops rows evicted in this step from the recent ones, unless they were evicted again since."""
    for name in self._leaving.pop(step, np.empty(0)).tolist():
      if self._recent[name][0] == step:
        del self._recent[name]

  def _arrivals(self, step: int, entering: np.ndarray) -> dict[str, np.ndarray]:
    """This process's part of `device_window.inputs`: for each entering row that it stores."""
    on_device = isinstance(self._store, _SeenOnDevice)
    shapes = device_window.inputs(self._settings.batch_size, self._layout.dim, self._mesh, on_device)
    parts = {name: np.zeros(shapes[name].shape[1:], shapes[name].dtype)
             for name in shapes.keys() - {'slots', 'swapped', 'entering'}}
    mine = self._mine(entering)
    recent = np.array([name in self._recent for name in entering[mine].tolist()], bool)

    here = mine[recent]
    left = np.array([self._recent[name] for name in entering[here].tolist()], np.int64).reshape(-1, 2)
    parts['origin'][here] = RECENT + left[:, 0] % HOST_LAG * self._settings.batch_size + left[:, 1]
    parts['missing'][here] = step - left[:, 0]
    parts['products'][here] = np.eye(2)

    here = mine[~recent]
    stored = self._store.read(entering[here])
    known = max(0, step - HOST_LAG)
    parts['origin'][here] = np.where(stored.written, OUTSIDE, FRESH)
    parts['missing'][here] = step - np.maximum(stored.seen, known)
    parts['products'][here] = self._rates.products(np.minimum(stored.seen, known), known)
    if not on_device:
      parts['rows'][here] = stored.rows
    return parts

  def _mine(self, names: np.ndarray) -> np.ndarray:
    """Positions in this array of the rows that this process stores."""
    ids = self._layout.ids
    return np.flatnonzero((names >= ids.start) & (names < ids.stop))

  def _known_to_all(self, swaps: Swaps) -> dict[str, jax.Array]:
    """The global arrays [B] that every process knows in full."""
    size = self._settings.batch_size
    filled = lambda names, rest: np.pad(names, (0, size - len(names)), constant_values=rest)
    arrays = {'slots': swaps.slots, 'swapped': filled(swaps.swapped, NO_SLOT),
              'entering': filled(swaps.entering, 0)}
    here = meshes.process_rows(self._mesh, size)
    local = {name: array[here].astype(np.int32) for name, array in arrays.items()}
    return meshes.to_global(local, self._mesh)

  def _part(self, values: np.ndarray) -> jax.Array:
    """The global array [T, …] with these values for this process's first device, and zeros for its others."""
    sharding = meshes.batch_sharding(self._mesh)
    shape = (self._mesh.size, *values.shape)
    first, *others = sharding.addressable_devices_indices_map(shape)
    keys = [(device, values.shape, values.dtype) for device in others]
    for key in keys:
      if key not in self._zeros:
        self._zeros[key] = jax.device_put(np.zeros_like(values)[None], key[0])
    parts = [jax.device_put(values[None], first), *(self._zeros[key] for key in keys)]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


class _SeenOnDevice:
  """The host's record of rows stored on the device: since which step each has been outside the window."""

  def __init__(self, outside: device_window.DeviceStore, mesh: Mesh):
    everywhere = jax.jit(lambda seen: seen, out_shardings=meshes.replicated(mesh))
    self._seen = np.asarray(everywhere(outside.seen)).astype(np.int64)

  def read(self, ids: np.ndarray) -> Stored:
    return Stored(np.empty((len(ids), 2, 0), np.float32), self._seen[ids], np.ones(len(ids), bool))

  def write(self, ids: np.ndarray, rows: np.ndarray, seen: np.ndarray) -> None:
    del rows
    self._seen[ids] = seen

  def checkpoint(self, step: int, kept: Sequence[int]) -> None:
    """Does nothing: the train state holds the rows."""


def _agree(problem: str | None) -> None:
  """Raises a `NotCopied` on every process if one has a problem."""
  failed = multihost_utils.process_allgather(np.bool_(problem is not None))
  if problem is not None:
    raise NotCopied(problem)
  if failed.any():
    raise NotCopied(f'process {int(np.flatnonzero(failed)[0])} could not copy its rows to the bucket')
