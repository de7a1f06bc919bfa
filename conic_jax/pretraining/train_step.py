"""The train step, a pure function of state and batch; the initial state and its layout on the mesh."""
import functools
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from conic_jax import optim
from conic_jax.data import pipeline
from conic_jax.data.augment import augment, view_keys
from conic_jax.data.sampler import Sampler
from conic_jax.data.sources import Source
from conic_jax.hardware import mesh as meshes
from conic_jax.memories.memory import hosted, update_all
from conic_jax.methods import Method
from conic_jax.pretraining.gradients import Gradients, of_whole_batch
from conic_jax.run.state import LossScale, TrainState
from conic_jax.views import Views

# Separate from the views' keys, which fold the epoch into the seed's key.
_STATE_STREAM = 2**32 - 1


def init_state(method: Method, optimizer: optax.GradientTransformation, seed: int,
               dtype: jnp.dtype) -> TrainState:
  """The state before the first step, which depends on the seed alone."""
  init_rng, step_rng = jax.random.split(jax.random.fold_in(jax.random.key(seed), _STATE_STREAM))
  views = tuple(jnp.zeros((1, group.count, group.size, group.size, 3)) for group in method.views)
  count = sum(group.count for group in method.views)
  batch = {'views': views, 'id': jnp.zeros(1, jnp.int32), 'valid': jnp.ones(1, bool),
           'crop': jnp.zeros((1, count, 4)), 'flip': jnp.zeros((1, count), bool)}
  params, batch_stats, memories = method.init(init_rng, batch)
  return TrainState(
    step=jnp.int32(0), updates=jnp.int32(0), params=params, batch_stats=batch_stats,
    opt_state=optimizer.init(params), memories=memories, loss_scale=LossScale.create(dtype),
    rng=step_rng)


def state_shardings(shapes: TrainState, method: Method, mesh: jax.sharding.Mesh) -> TrainState:
  """Shardings of a state: each memory by its own rules, the rest replicated."""
  everywhere = jax.tree.map(lambda _: meshes.replicated(mesh), shapes)
  memories = {name: meshes.shardings(shapes.memories[name], memory.partition_rules(), mesh)
              for name, memory in method.memories.items()}
  return everywhere.replace(memories=memories)


def make_step(method: Method, optimizer: optax.GradientTransformationExtraArgs, schedule: optim.Schedule,
              seed: int, steps_per_round: int, dtype: jnp.dtype, gradients: Gradients = of_whole_batch
              ) -> Callable[[TrainState, dict[str, Any]], tuple[TrainState, dict[str, jax.Array], Any]]:
  """Creates the train step, a pure function (state, batch) -> (state, metrics, outputs for each host side).

  It augments the views, exchanges with the hosts, differentiates the method's loss by `gradients`, and
  updates the parameters by the optimizer and each memory by its own rule. In float16 a step whose gradients
  overflow changes only `step`, the loss scale, and what the exchange changed.
  """
  scaled = dtype == jnp.float16

  def step(state: TrainState, batch: dict[str, Any]):
    augment = lambda part: augment_batch(method.views, part, seed, state.step // steps_per_round)
    rng = jax.random.fold_in(state.rng, state.step)
    lr = schedule(state.step)
    memories, host_outputs = dict(state.memories), {}
    for name, memory in hosted(method.memories).items():
      memories[name], host_outputs[name] = memory.exchange(
        memories[name], batch['host_inputs'][name], state.step, state.updates, lr)

    grads, (loss, aux) = gradients(method, state.replace(memories=memories), batch, rng, augment)
    grads = jax.tree.map(lambda g: g / state.loss_scale.scale, grads)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss) if scaled else jnp.bool(True)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, lr=lr)
    params = optax.apply_updates(state.params, updates)
    learned = {'params': params, 'batch_stats': aux.batch_stats, 'opt_state': opt_state,
               'updates': state.updates + 1}
    metrics = {'loss': loss, **aux.metrics, 'grad_norm': grad_norm, 'learning_rate': lr}
    if scaled:
      learned = {name: jax.tree.map(functools.partial(jnp.where, finite), after, getattr(state, name))
                 for name, after in learned.items()}
    memories = update_all(method.memories, memories, aux.seen, params, state.step, lr, finite)
    new = state.replace(step=state.step + 1, memories=memories, **learned)
    if scaled:
      new = new.replace(loss_scale=state.loss_scale.next(finite))
      metrics |= {'loss_scale': state.loss_scale.scale, 'skipped': new.skipped, 'overflow': ~finite}
    return new, metrics, host_outputs
  return step


def jit_step(step: Callable[..., Any], shardings: TrainState, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
  """Compiles `make_step`'s step: the state keeps its shardings and is donated, the rest is replicated."""
  everywhere = meshes.replicated(mesh)
  return jax.jit(step, in_shardings=(shardings, meshes.batch_sharding(mesh)),
                 out_shardings=(shardings, everywhere, everywhere), donate_argnums=0)


def jit_before_epoch(method: Method, shardings: TrainState) -> jax.stages.Wrapped | None:
  """The memories' work before an epoch, compiled with the state donated; None if there is none."""
  prepared = {name: memory for name, memory in method.memories.items() if memory.prepares_epochs}
  if not prepared:
    return None

  def before_epoch(state):
    changed = {name: memory.before_epoch(state.memories, name) for name, memory in prepared.items()}
    return state.replace(memories={**state.memories, **changed})
  return jax.jit(before_epoch, donate_argnums=0, in_shardings=(shardings,), out_shardings=shardings)


def host_input_shapes(method: Method, batch_size: int) -> dict[str, Any]:
  """Shapes of the host inputs in a batch; {} if no memory has a host side."""
  shapes = {name: memory.host_inputs(batch_size) for name, memory in hosted(method.memories).items()}
  return {'host_inputs': shapes} if shapes else {}


def training_batches(source: Source, method: Method, sampler: Sampler, mesh: jax.sharding.Mesh
                     ) -> Callable[[int], Generator[dict[str, Any], None, None]]:
  """Batches for a `Phase` of training: a function of its first step to this process's rows of each."""
  def batches(first_step):
    return pipeline.train_batches(source, method.views, sampler, start_step=first_step,
                                  rows=meshes.process_rows(mesh, sampler.batch_size))
  return batches


def augment_batch(groups: tuple[Views, ...], batch: dict[str, Any], seed: int,
                  round_number: jax.Array) -> dict[str, Any]:
  """The batch with its uint8 views flipped, augmented and normalised as their groups specify."""
  views, first = [], 0
  for images, group in zip(batch['views'], groups):
    keys = view_keys(seed, round_number, batch['id'], group.count, first)
    flip = batch['flip'][:, first:first + group.count]
    views.append(augment(images, flip, keys, group))
    first += group.count
  return {**batch, 'views': tuple(views)}


def variables(state: TrainState) -> dict[str, Any]:
  """The variables for `Network.encode`."""
  return {'params': state.params, 'batch_stats': state.batch_stats}
