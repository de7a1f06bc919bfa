"""The train state: everything that a step reads and writes."""
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class LossScale:
  """Dynamic loss scaling for float16: halved by an overflow, doubled after `GROWTH_STEPS` steps without one.

  Attributes:
    scale: float32 [], the factor on the loss; constant 1 if unused.
    good_steps: int32 [], steps since the last overflow or doubling.
  """
  scale: jax.Array
  good_steps: jax.Array

  GROWTH_STEPS = 2000
  LARGEST = 2.0 ** 24

  @classmethod
  def create(cls, dtype: jnp.dtype) -> 'LossScale':
    start = 2.0 ** 15 if dtype == jnp.float16 else 1.0
    return cls(jnp.float32(start), jnp.int32(0))

  def next(self, finite: jax.Array) -> 'LossScale':
    """The scale after a step; `finite` says whether its gradients were."""
    grow = finite & (self.good_steps + 1 >= self.GROWTH_STEPS)
    scale = jnp.where(finite, jnp.where(grow, self.scale * 2, self.scale), self.scale / 2)
    good_steps = jnp.where(finite & ~grow, self.good_steps + 1, 0)
    return LossScale(jnp.clip(scale, 1.0, self.LARGEST), good_steps)


@flax.struct.dataclass
class TrainState:
  """Everything that a step reads and writes.

  Attributes:
    step: int32 [], batches drawn from the data: the sampler's position.
    updates: int32 [], updates applied; smaller than `step` if float16 skipped some.
    params: the parameters that the optimizer learns, float32.
    batch_stats: the running statistics of batch norm, float32.
    opt_state: the optimizer's state.
    memories: the state that learns outside the optimizer, by name: rows, queue, bank, momentum encoder.
    loss_scale: dynamic loss scaling.
    rng: the base key; each step folds `step` into it.
  """
  step: jax.Array
  updates: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  memories: dict[str, Any]
  loss_scale: LossScale
  rng: jax.Array

  @property
  def skipped(self) -> jax.Array:
    """Steps that an overflow skipped, int32 []."""
    return self.step - self.updates


def supervised_state(params: Any, batch_stats: Any, optimizer: Any) -> TrainState:
  """Initial state of a supervised training: no memories, no loss scale."""
  return TrainState(
    step=jnp.int32(0), updates=jnp.int32(0), params=params, batch_stats=batch_stats,
    opt_state=optimizer.init(params), memories={}, loss_scale=LossScale.create(jnp.dtype(jnp.float32)),
    rng=jax.random.key(0))
