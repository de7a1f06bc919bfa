"""Optimizers and learning-rate schedules."""
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from conic_jax.errors import UserError

Schedule = Callable[[Any], Any]
Mask = Callable[[Any], Any]


# ---- Optimizers ---------------------------------------------------------------------------------
# The learning rate is passed to each update, because the classifier's rows use the same one:
# updates, state = optimizer.update(gradients, state, params, lr=lr), then optax.apply_updates.


def sgd(weight_decay: float, momentum: float,
        decayed: Mask | None = None) -> optax.GradientTransformationExtraArgs:
  """Momentum SGD as in PyTorch: v ← m v + g + λ p, p ← p − η v.

  Args:
    weight_decay: λ.
    momentum: m.
    decayed: maps parameters to a tree of bools, True where λ applies; by default everywhere.
  """
  return descending(optax.chain(optax.add_decayed_weights(weight_decay, decayed), optax.trace(momentum)))


def lars(weight_decay: float, momentum: float, trust: float, decayed: Mask | None = None,
         lr_in_momentum: bool = True) -> optax.GradientTransformationExtraArgs:
  """LARS, with the learning rate inside or outside the momentum.

  inside:   v ← m v + η ρ (g + λ p), p ← p − v
  outside:  v ← m v + ρ (g + λ p),   p ← p − η v

  ρ = η_l ‖p‖/‖g + λ p‖ for each array; 1 if either norm is zero, and for arrays of rank one.

  Args:
    weight_decay: λ.
    momentum: m.
    trust: η_l.
    decayed: as for `sgd`.
    lr_in_momentum: whether the rate is inside the momentum.

  Source: You, Gitman and Ginsburg (2017), Algorithm 1, with SimCLR's exclusions; the rate outside follows
  BYOL's public code.
  """
  direction = optax.chain(
    optax.add_decayed_weights(weight_decay, decayed),
    optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust), not_vectors))
  if lr_in_momentum:
    return optax.chain(descending(direction), optax.trace(momentum))
  return descending(optax.chain(direction, optax.trace(momentum)))


def adamw(weight_decay: float, beta1: float, beta2: float, decayed: Mask | None = None
          ) -> optax.GradientTransformationExtraArgs:
  """Adam with decoupled weight decay: p ← p − η (m̂ / (√v̂ + 10⁻⁸) + λ p).

  m̂ = m / (1 − β₁ᵗ) with m ← β₁ m + (1 − β₁) g, and v̂ = v / (1 − β₂ᵗ) with v ← β₂ v + (1 − β₂) g².

  Args:
    weight_decay: λ, which the rate η scales, as in PyTorch.
    beta1, beta2: β₁ and β₂.
    decayed: as for `sgd`.

  Source: Loshchilov and Hutter (2019), Algorithm 2.
  """
  moments = optax.scale_by_adam(beta1, beta2)
  def update(updates, state, params=None):
    # Optax raises β to the count, a float to an integer, which strict promotion forbids.
    with jax.numpy_dtype_promotion('standard'):
      return moments.update(updates, state, params)
  return descending(optax.chain(optax.GradientTransformation(moments.init, update),
                                optax.add_decayed_weights(weight_decay, decayed)))


def descending(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """Scales a transformation's updates u to −η u, with η passed to each update; keeps its state."""
  def update(updates, state, params=None, **extra_args):
    updates, state = inner.update(updates, state, params)
    return jax.tree.map(lambda u: -extra_args['lr'] * u, updates), state
  return optax.GradientTransformationExtraArgs(inner.init, update)


def not_vectors(params: Any) -> Any:
  """A mask that excludes biases and batch-norm parameters (arrays of rank one)."""
  return jax.tree.map(lambda p: p.ndim > 1, params)


def make_optimizer(config: Any) -> optax.GradientTransformationExtraArgs:
  """The optimizer of `config.optimizer`: its name, and the fields that an optimizer of this name reads.

  Raises:
    UserError: if the name is unknown.
  """
  decayed = None if config.decay_vectors else not_vectors
  if config.name == 'sgd':
    return sgd(config.weight_decay, config.momentum, decayed)
  if config.name == 'lars':
    return lars(config.weight_decay, config.momentum, config.trust, decayed, config.lr_in_momentum)
  if config.name == 'adamw':
    return adamw(config.weight_decay, config.momentum, config.beta2, decayed)
  raise UserError(f"config.optimizer.name is '{config.name}'; available: sgd, lars, adamw.")


# ---- Schedules ----------------------------------------------------------------------------------


def cosine_schedule(peak: float, total_steps: int, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
  """Linear warm-up, then cosine decay to `end`, per step.

  η(s) = end + (peak − end)·½(1 + cos(π (s − warmup) / (total − warmup))) after the warm-up, and
  peak·(s + 1)/warmup during it.

  Args:
    peak: the rate after the warm-up.
    total_steps: steps of the whole run; afterwards the rate stays at `end`.
    warmup_steps: steps of the warm-up.
    end: the final rate.

  Returns:
    A function from the step to the rate, float32 [].
  """
  decay = optax.cosine_decay_schedule(peak - end, max(1, total_steps - warmup_steps))
  return _warmed_up(lambda step: end + decay(jnp.asarray(step, jnp.float32)), peak, warmup_steps)


def step_schedule(peak: float, milestones: tuple[int, ...], warmup_steps: int = 0) -> Schedule:
  """Linear warm-up as in `cosine_schedule`, then `peak`, divided by 10 at each milestone.

  Args:
    peak: the rate after the warm-up.
    milestones: first step of each lower rate.
    warmup_steps: steps of the warm-up.

  Returns:
    A function from the step to the rate, float32 [].
  """
  rates = [optax.constant_schedule(peak / 10 ** lowered) for lowered in range(len(milestones) + 1)]
  after = [milestone - warmup_steps for milestone in sorted(milestones)]
  return _warmed_up(optax.join_schedules(rates, after), peak, warmup_steps)


def _warmed_up(schedule: Schedule, peak: float, warmup_steps: int) -> Schedule:
  """A linear warm-up to `peak`, then the schedule from its step 0."""
  if not warmup_steps:
    return schedule
  warmup = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1)
  return optax.join_schedules([warmup, schedule], [warmup_steps])


def per_epoch(schedule: Schedule, steps_per_epoch: int, warmup_steps: int = 0) -> Schedule:
  """A schedule whose rate changes only at the start of an epoch; during warm-up, at every step."""
  def held(step):
    start = jnp.maximum(step // steps_per_epoch * steps_per_epoch, warmup_steps)
    return schedule(jnp.where(step < warmup_steps, step, start))
  return held


def relative_schedule(name: str, milestones: tuple[float, ...], total_steps: int) -> Schedule:
  """A factor for several rates: 'cosine' from 1 to 0, or 'steps' from 1, divided by 10 at each milestone.

  Args:
    name: name of the schedule.
    milestones: fractions of the training at which 'steps' divides by 10.
    total_steps: steps of the whole training.
  """
  if name == 'cosine':
    return cosine_schedule(1.0, total_steps)
  return step_schedule(1.0, tuple(round(share * total_steps) for share in milestones))


def check_relative(name: str, milestones: tuple[float, ...], group: str) -> None:
  """Raises a UserError if these settings of a config group are invalid for `relative_schedule`."""
  if name not in ('cosine', 'steps'):
    raise UserError(f"{group}.schedule is '{name}'; available: cosine, steps.")
  if any(not 0 < milestone < 1 for milestone in milestones):
    raise UserError(f'{group}.milestones is {milestones}: each is a share of the training between 0 and 1, '
                    'such as (0.6, 0.8).')


def make_schedule(config: Any, epochs: int, steps_per_epoch: int) -> Schedule:
  """Makes the schedule from learning_rate, warmup_epochs, schedule, end, milestones and per_epoch.

  Args:
    config: `config.optimizer`.
    epochs: epochs of the whole run.
    steps_per_epoch: steps per epoch.

  Raises:
    UserError: if the name is unknown, or a milestone is not before the end.
  """
  peak, warmup_steps = config.learning_rate, round(config.warmup_epochs * steps_per_epoch)
  if config.schedule == 'cosine':
    schedule = cosine_schedule(peak, epochs * steps_per_epoch, warmup_steps, config.end)
  elif config.schedule == 'steps':
    if late := [milestone for milestone in config.milestones if milestone >= epochs]:
      raise UserError(f'config.optimizer.milestones has epoch {late[0]} and the run ends after {epochs}: '
                      'give milestones before its end, 60% and 80% of it being usual, or an empty ().')
    milestones = tuple(epoch * steps_per_epoch for epoch in config.milestones)
    schedule = step_schedule(peak, milestones, warmup_steps)
  else:
    raise UserError(f"config.optimizer.schedule is '{config.schedule}'; available: cosine, steps.")
  return per_epoch(schedule, steps_per_epoch, warmup_steps) if config.per_epoch else schedule
