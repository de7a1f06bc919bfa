"""The gradients of a step's loss, of the whole batch at once or of one part of it after the other.

In parts, the networks see each part twice. The first time they embed its images, without keeping what the
gradients need. The method's loss then sees what was embedded of all images, and gives its gradient for each
of them. The second time each part is embedded again, and its share of the parameters' gradients is added up.
So the loss, the gradients and what the memories see are those of the whole batch, but for batch norm, whose
statistics are each part's own.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.methods import DecomposedMethod, Method
from conic_jax.methods.method import Aux
from conic_jax.run.state import TrainState

Augment = Callable[[dict[str, Any]], dict[str, Any]]
# Maps (method, state, batch before `augment`, rng, augment) to (gradients times the loss scale, (loss, aux)).
Gradients = Callable[[Any, TrainState, dict[str, Any], jax.Array, Augment], tuple[Any, tuple[jax.Array, Aux]]]


def chosen(config: Any, method: Method, mesh: Mesh) -> Gradients:
  """The gradients in `config.accumulate` parts.

  Raises:
    UserError: if the method or the batch cannot be divided so.
  """
  parts, batch_size = config.accumulate, config.batch_size
  if parts == 1:
    return of_whole_batch
  if method.undivided:
    raise UserError(f'config.accumulate is {parts}, and {config.method} cannot take a batch in parts: '
                    f'{method.undivided}. Set it to 1; config.encoder.remat saves memory for every method.')
  if batch_size % (parts * mesh.size):
    raise UserError(f'config.batch_size {batch_size} cannot be split into config.accumulate {parts} parts '
                    f'over {mesh.size} devices: set one of them so that {parts * mesh.size} divides the '
                    'batch.')
  return functools.partial(of_parts, Parts(parts, mesh))


def of_whole_batch(method: Method, state: TrainState, batch: dict[str, Any], rng: jax.Array,
                   augment: Augment) -> tuple[Any, tuple[jax.Array, Aux]]:
  """Differentiates the loss of a batch at once."""
  batch = augment(batch)

  def loss_fn(params):
    loss, aux = method.loss(params, state.batch_stats, state.memories, batch, rng)
    return loss * state.loss_scale.scale, (loss, aux)
  return jax.grad(loss_fn, has_aux=True)(state.params)


@dataclasses.dataclass(frozen=True)
class Parts:
  """How a batch is divided: each device takes a `count`-th of its own images at a time, and none moves."""
  count: int
  mesh: Mesh

  def split(self, batch: Any) -> Any:
    """Arrays [B, ...] as [count, B/count, ...]: `devices` × `count` blocks of images, regrouped."""
    spec = PartitionSpec(None, self.mesh.axis_names)
    def of(x):
      blocks = x.reshape(self.mesh.size, self.count, -1, *x.shape[1:]).swapaxes(0, 1)
      return self._placed(blocks.reshape(self.count, -1, *x.shape[1:]), spec)
    return jax.tree.map(of, batch)

  def join(self, parts: Any) -> Any:
    """The inverse of `split`."""
    def of(x):
      blocks = x.reshape(self.count, self.mesh.size, -1, *x.shape[2:]).swapaxes(0, 1)
      return self._placed(blocks.reshape(-1, *x.shape[2:]), meshes.split(self.mesh))
    return jax.tree.map(of, parts)

  def _placed(self, x, spec):
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))


def of_parts(parts: Parts, method: DecomposedMethod, state: TrainState, batch: dict[str, Any], rng: jax.Array,
             augment: Augment) -> tuple[Any, tuple[jax.Array, Aux]]:
  """Differentiates the loss of a batch part by part; see the module.

  The running statistics after the step are the mean over the parts of what each would leave.
  """
  whole = {name: part for name, part in batch.items() if name != 'views'}
  images = {name: part for name, part in batch.items() if name != 'host_inputs'}
  inputs = parts.split(images), jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(parts.count))

  def embed(params, part, key):
    return method.embed(params, state.batch_stats, state.memories, augment(part), key)

  def first_time(carry, inputs):
    mean, number = carry
    embedded, statistics = embed(state.params, *inputs)
    # Equal statistics, such as frozen patches, stay as they are to the bit.
    mean = jax.tree.map(lambda mean, new: mean + (new - mean) / number, mean, statistics)
    return (mean, number + 1), embedded

  _, shapes = jax.eval_shape(embed, state.params, *jax.tree.map(lambda x: x[0], inputs))
  empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  (statistics, _), embedded = jax.lax.scan(first_time, (empty, jnp.float32(1)), inputs)

  def loss_fn(params, embedded):
    loss, aux = method.loss_of(params, embedded, statistics, state.memories, whole, rng)
    return loss * state.loss_scale.scale, (loss, aux)
  (grads, cotangents), aux = jax.grad(loss_fn, (0, 1), has_aux=True)(state.params, parts.join(embedded))

  def second_time(grads, inputs):
    *inputs, cotangents = inputs
    _, pull_back = jax.vjp(lambda params: embed(params, *inputs)[0], state.params)
    return jax.tree.map(jnp.add, grads, pull_back(cotangents)[0]), None
  return jax.lax.scan(second_time, grads, (*inputs, parts.split(cotangents)))[0], aux
