"""The losses of methods whose number of devices changes between starts: FOLDER CASE ….

Prints, for each case (the name of a method, or conic_s and a store), the losses of an undisturbed run and
those of one on 8, then 4, then 16 devices, as JSON.
"""
import itertools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from support import tiny, tiny_method
from test_all import BATCH, NUM_IMAGES, Program, batch_ids, make_batch

from conic_jax.hardware import mesh as meshes
from conic_jax.memories.host import HostSettings
from conic_jax.memories.memory import hosted
from conic_jax.run.checkpoints import Checkpoints

EPOCH, STEPS = 3, 6
STARTS = ((8, 2), (4, 4), (16, STEPS))  # (devices, steps done at the end)


def take_steps(program, folder, stop):
  """The losses of the steps from the checkpoint in a folder on, which is followed by another."""
  checkpoints = Checkpoints(folder / 'checkpoints', keep=2)
  shapes = meshes.placed(jax.eval_shape(program.init), program.shardings)
  state = checkpoints.restore(shapes, {})
  fresh = state is None
  state = program.init() if fresh else state
  first, losses = int(state.step), []
  settings = HostSettings(folder / 'store', batch_ids, BATCH, STEPS, 2, 2)
  hosts = {name: memory.host(settings) for name, memory in hosted(program.method.memories).items()}
  for name, host in hosts.items():
    host.start(state.memories[name], first, fresh)
  for step in range(first, stop):
    if program.prepare and step % EPOCH == 0:
      state = program.prepare(state)
    inputs = make_batch(program.method, program.mesh, step)
    if hosts:
      inputs['host_inputs'] = {name: host.inputs(step) for name, host in hosts.items()}
    state, metrics, outputs = program.step(state, inputs)
    for name, host in hosts.items():
      host.receive(step, outputs[name])
    losses.append(float(metrics['loss']))
  for host in hosts.values():
    host.sync(stop, checkpoints.steps())
    host.close()
  checkpoints.save(state, stop, {})
  checkpoints.close()
  return losses


def main():
  folder, found = Path(sys.argv[1]), {}
  for case in sys.argv[2:]:
    name, _, store = case.partition(' ')
    changes = {'classifier.store': store} if store else {}
    config = tiny_method(tiny('no images', folder), name, **changes)
    programs = {count: Program(config, meshes.make_mesh(devices=jax.devices()[:count]), jnp.dtype('float32'))
                for count, _ in STARTS}
    whole = take_steps(programs[8], folder / case / 'whole', STEPS)
    parts = [take_steps(programs[count], folder / case / 'changed', stop) for count, stop in STARTS]
    found[case] = [whole, list(itertools.chain(*parts))]
  print(json.dumps(found))


if __name__ == '__main__':
  assert NUM_IMAGES % 16  # Rows are padded.
  main()
