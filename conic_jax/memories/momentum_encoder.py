"""The momentum encoder: a moving average of the network's parameters."""
import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from conic_jax.errors import UserError
from conic_jax.memories.memory import Memory

# How the momentum may change over a run.
SCHEDULES = ('constant', 'cosine')


@dataclasses.dataclass(frozen=True)
class MomentumEncoder(Memory):
  """θk ← m θk + (1 − m) θ after each update; its batch-norm statistics are its own and not averaged.

  The state is {'params', 'batch_stats'}, with those of the network's parameters that it started with. The
  loss passes its batch_stats after the batch. MoCo averages at the start of a step; here the same average is
  taken at the end of the previous step.

  Attributes:
    start: m₀.
    schedule: 'constant' or 'cosine', see `momentum_at`.
    total_steps: steps of the whole run.

  Raises:
    UserError: for an unknown schedule, or a momentum outside [0, 1].

  Source: MoCo (He et al. 2020), Eq. 2; BYOL (Grill et al. 2020), §3.
  """
  start: float
  schedule: str
  total_steps: int

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise UserError(f"config.momentum.schedule is '{self.schedule}'; available: {', '.join(SCHEDULES)}.")
    if not 0 <= self.start <= 1:
      raise UserError(f'config.momentum.start is {self.start}; it must be from 0 to 1.')

  def init(self, params: Any, batch_stats: Any) -> dict[str, Any]:
    """Starts as a copy of the network."""
    return {'params': params, 'batch_stats': batch_stats}

  def update(self, state, seen, params, step, lr, applied):
    own = {name: params[name] for name in state['params']}
    momentum = momentum_at(self.start, self.schedule, step, self.total_steps)
    after = {'params': average(state['params'], own, momentum), 'batch_stats': seen}
    return jax.tree.map(lambda new, old: jnp.where(applied, new, old), after, state)


def average(old: Any, new: Any, momentum: jax.typing.ArrayLike) -> Any:
  """m·old + (1 − m)·new for every leaf."""
  return jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * new, old, new)


def momentum_at(start: float, schedule: str, step: jax.Array, total_steps: int) -> jax.Array:
  """The momentum m at a step.

  'constant': m₀. 'cosine': 1 − (1 − m₀)·½(cos(π·step/total) + 1), from m₀ to 1.

  Args:
    start: m₀.
    schedule: 'constant' or 'cosine'.
    step: int32 [], steps done.
    total_steps: steps of the whole run.

  Returns:
    float32 [].

  Raises:
    ValueError: for an unknown schedule.

  Source: BYOL (Grill et al. 2020), §3.3.
  """
  chex.assert_rank(step, 0)
  if schedule not in SCHEDULES:
    raise ValueError(f'The schedule is {schedule!r}; available: {", ".join(SCHEDULES)}.')
  if schedule == 'constant':
    return jnp.float32(start)
  progress = jnp.minimum(step / total_steps, 1.0)
  return 1 - (1 - start) * (jnp.cos(jnp.pi * progress) + 1) / 2
