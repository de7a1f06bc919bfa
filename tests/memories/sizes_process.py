"""One of the processes of `test_sizes`: INDEX COUNT PORT FOLDER START STOP."""
import sys
from pathlib import Path

import jax
import numpy as np
from etils import epath

from conic_jax.hardware import mesh as meshes


def is_key(leaf):
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def save(path, trainer, state):
  """Saves the state of a trainer, but for its key, to a file."""
  leaves = [leaf for leaf in jax.tree.leaves(state) if not is_key(leaf)]
  arrays = [np.asarray(leaf) for leaf in trainer.everywhere(leaves)]
  if jax.process_index() == 0:
    np.savez(path, *arrays)


def load(path, trainer):
  """The state in a file; the key is the same in all."""
  with np.load(path) as held:
    arrays = iter(list(held.values()))
  def placed(leaf):
    if is_key(leaf):
      return leaf
    array = next(arrays)
    return jax.make_array_from_callback(array.shape, leaf.sharding, array.__getitem__)
  return jax.tree.map(placed, trainer.state)


def take_steps(trainer, state, start, stop):
  """Takes the steps of a trainer from a state file on, and saves its state there."""
  if start:
    trainer.state, trainer.steps_done = load(state, trainer), start
  trainer.host.start(trainer.state['window'], start, fresh=not start)
  while trainer.steps_done < stop:
    trainer.advance()
  save(state, trainer, trainer.save([start] if start else []))
  trainer.host.close()


def with_every_store(folder, start, stop):
  """Takes the steps with every store, in a folder that all processes share and in one of its own."""
  from test_host_rows import KINDS, Trainer  # Once the process is in its cluster: it makes arrays.
  mesh = meshes.make_mesh()
  for kind in KINDS:
    run = folder / kind
    run.mkdir(exist_ok=True)
    take_steps(Trainer(run / 'shared', mesh, kind), run / 'shared.npz', start, stop)
    own = Trainer(run / f'own-{jax.process_index()}', mesh, kind, remote=epath.Path(run / 'bucket'))
    take_steps(own, run / 'own.npz', start, stop)


if __name__ == '__main__':
  _, index, count, port, folder, start, stop = sys.argv
  jax.distributed.initialize(f'127.0.0.1:{port}', int(count), int(index))
  with_every_store(Path(folder), int(start), int(stop))
