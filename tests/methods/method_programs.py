"""Methods with the tiny network, their compiled steps, and runs of a few steps."""
import functools

import jax
import numpy as np
from support import noise_batch, tiny, tiny_method

from conic_jax import methods, optim
from conic_jax.hardware import mesh as meshes
from conic_jax.memories.host import HostSettings
from conic_jax.memories.memory import hosted
from conic_jax.pretraining import train_step
from conic_jax.run.checkpoints import Checkpoints
from conic_jax.run.state import LossScale

NUM_IMAGES, BATCH = 37, 16
EPOCH, STEPS = 3, 6
SCHEDULE = optim.cosine_schedule(0.03, 10)


def config_of_case(images, run, case):
  """The tiny config of a case: the name of a method, or conic_s and a store."""
  name, _, store = case.partition(' ')
  return tiny_method(tiny(images, run), name, **({'classifier.store': store} if store else {}))


def without_colours(config):
  """A config that leaves colours alone: to change them is the same for all methods, and a third of a step."""
  config = config.copy_and_resolve_references()
  config.views.update(jitter=0.0, grayscale=0.0, blur=0.0, solarise=0.0)
  return config


def batch_ids(step):
  return np.random.default_rng(step).permutation(NUM_IMAGES)[:BATCH]


def make_batch(method, mesh, step):
  return noise_batch(method, mesh, step, batch_ids(step), np.arange(BATCH) != 3)


class Program:
  """A method with its first state and its step for a mesh."""

  def __init__(self, config, mesh, dtype, num_images=NUM_IMAGES):
    self.mesh = mesh
    self.method = methods.make(config, num_images, mesh, dtype)
    optimizer = optim.make_optimizer(config.optimizer)
    init = functools.partial(train_step.init_state, self.method, optimizer, 0, dtype)
    shapes = jax.eval_shape(init)
    self.shardings = train_step.state_shardings(shapes, self.method, mesh)
    self.shapes = meshes.placed(shapes, self.shardings)
    self.init = jax.jit(init, out_shardings=self.shardings)
    self.prepare = train_step.jit_before_epoch(self.method, self.shardings)
    self._step = jax.jit(
      train_step.make_step(self.method, optimizer, SCHEDULE, 0, 2, dtype),
      in_shardings=(self.shardings, meshes.batch_sharding(mesh)),
      out_shardings=(self.shardings, meshes.replicated(mesh), meshes.replicated(mesh)))

  @functools.cached_property
  def step(self):
    """The compiled step."""
    batch = make_batch(self.method, self.mesh, 0) | train_step.host_input_shapes(self.method, BATCH)
    return self._step.lower(self.shapes, batch).compile()

  def begin_as(self, other, dtype):
    """Starts with the state of a program of another type: only the scale of the loss depends on it."""
    self.init = lambda: other.init().replace(loss_scale=LossScale.create(dtype))


class Setting:
  """A program with its state and hosts."""

  def __init__(self, program, folder):
    self.program, self.method, self.shardings = program, program.method, program.shardings
    self.state = program.init()
    if program.prepare:
      self.state = program.prepare(self.state)
    settings = HostSettings(folder, batch_ids, BATCH, 10, 2, 1)
    self.hosts = {name: memory.host(settings) for name, memory in hosted(self.method.memories).items()}
    for name, host in self.hosts.items():
      host.start(self.state.memories[name], 0, fresh=True)

  def take(self, step, **changes):
    """Takes a step and gives its metrics."""
    inputs = {**make_batch(self.method, self.program.mesh, step), **changes}
    self.host_inputs = {name: host.inputs(step) for name, host in self.hosts.items()}
    if self.hosts:
      inputs['host_inputs'] = self.host_inputs
    self.state, metrics, outputs = self.program.step(self.state, inputs)
    for name, host in self.hosts.items():
      host.receive(step, outputs[name])
    return metrics


def take_steps(program, folder, stop):
  """The losses of the steps from the checkpoint in a folder on, which another follows if steps are left."""
  checkpoints = Checkpoints(folder / 'checkpoints', keep=2)
  state = checkpoints.restore(program.shapes, {})
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
  if stop < STEPS:
    checkpoints.save(state, stop, {})
  checkpoints.close()
  return losses
