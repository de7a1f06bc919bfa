"""The stores of all processes of a run, whatever their number, in one process."""
import numpy as np

from conic_jax.memories.host import HostSettings
from conic_jax.memories.row_store import Layout

N, DIM, SEED = 37, 3, 5
SGD = {'momentum': 0.9, 'weight_decay': 1e-2}
DEPENDS_ON = {'norm': 1.0}


def rows_of(ids, step):
  """Rows that differ in every entry, id and step."""
  start = 1000 * step + np.asarray(ids)
  return (start[:, None, None] + np.arange(6).reshape(2, 3) / 8).astype(np.float32)


def ids_of(step):
  return np.random.default_rng(step).choice(N, 9, replace=False)


def held_at(step):
  """{id: step of its last write} after this many steps."""
  return {id: done for done in range(step) for id in ids_of(done).tolist()}


class Processes:
  """What each process has open; `make` gives the folder of the process of a layout."""

  def __init__(self, make, count, step=None):
    self.step, self.folders = step or 0, [make(Layout(N, DIM, SEED, index, count)) for index in range(count)]
    for folder in self.folders:
      if step is None:
        folder.begin()
      else:
        folder.check(step, max(0, step - 1) if len(folder.layout.ids) else 0)
    self.stores = [folder.open(step) for folder in self.folders]
    self.rates = [folder.rates(**SGD) for folder in self.folders]

  def advance(self, stop):
    for step in range(self.step, stop):
      ids = ids_of(step)
      for folder, store, rates in zip(self.folders, self.stores, self.rates, strict=True):
        mine = ids[np.isin(ids, folder.layout.ids)]
        store.write(mine, rows_of(mine, step), np.full(len(mine), step))
        if step:
          rates.append(0.1 * step)
    self.step = stop

  def checkpoint(self, kept=()):
    """Those of all processes; what each answers, the first process last."""
    for store, rates in zip(self.stores, self.rates, strict=True):
      rates.checkpoint()
      store.checkpoint(self.step, kept)
    return [folder.sync(self.step, kept) for folder in reversed(self.folders)]

  def close(self):
    for opened in (*self.stores, *self.rates):
      opened.close()

  def check(self, step):
    """The processes hold what was written in the steps before this one."""
    expected = held_at(step)
    for folder, store, rates in zip(self.folders, self.stores, self.rates, strict=True):
      ids = np.array(folder.layout.ids, np.int64)
      rows, seen, written = store.read(ids)
      np.testing.assert_array_equal(written, [id in expected for id in ids])
      np.testing.assert_array_equal(seen, [expected.get(id, 0) for id in ids])
      theirs = [rows_of([id], expected[id])[0] if id in expected else np.zeros((2, DIM)) for id in ids]
      np.testing.assert_array_equal(rows, np.reshape(theirs, rows.shape))
      if len(ids):
        np.testing.assert_array_equal(rates.known, np.float32(0.1 * np.arange(1, max(1, step))))


def settings_of(folder, remote=None):
  return HostSettings(folder, ids_of, 9, 100, 2, 3, remote)


def check_each(begin, steps):
  """Any of these checkpoints can be gone on from; `begin` gives the processes that do so."""
  for step in steps:
    processes = begin(step)
    processes.check(step)
    processes.close()
