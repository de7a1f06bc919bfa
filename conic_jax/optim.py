"""Optimizers and learning-rate schedules."""
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from conic_jax.errors import UserError

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def cosine_schedule(peak: float, total_steps: int, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
  """Linear warm-up, then a cosine to `end`, per step.

  η(s) = end + (peak − end)·½(1 + cos(π (s − warmup) / (total − warmup))) after the warm-up, and
  peak·(s + 1)/warmup in it.

  Args:
    peak: the rate after the warm-up.
    total_steps: steps of the whole run; the rate stays at `end` after them.
    warmup_steps: steps of the warm-up.
    end: the last rate.

  Returns:
    A function from the step to the rate, float32 [].
  """
  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    progress = jnp.clip((step - warmup_steps) / max(1, total_steps - warmup_steps), 0.0, 1.0)
    cosine = end + (peak - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < warmup_steps, peak * (step + 1) / max(1, warmup_steps), cosine)
  return schedule


def sgd(weight_decay: float, momentum: float,
        mask: Callable[[Any], Any] | None = None) -> optax.GradientTransformation:
  """Momentum SGD as PyTorch's: v ← m v + (g + λ p), p ← p − η v, with η given at each update.

  The transformation gives v; `apply_updates` multiplies by η, so that the rate is the caller's and
  the classifier's rows follow the same one.

  Args:
    weight_decay: λ.
    momentum: m.
    mask: from parameters to a tree of bools: where λ applies; everywhere by default.
  """
  return optax.chain(optax.add_decayed_weights(weight_decay, mask), optax.trace(momentum))


def no_decay_on_vectors(params: Any) -> Any:
  """A mask that leaves biases and batch norm's scales (arrays of rank one) out of weight decay."""
  return jax.tree.map(lambda p: p.ndim > 1, params)


def make_optimizer(config: Any) -> optax.GradientTransformation:
  """The optimizer of `config.optimizer`: name, momentum, weight_decay, decay_vectors."""
  if config.name != 'sgd':
    raise UserError(f"config.optimizer.name is '{config.name}'; there is: sgd.")
  return sgd(config.weight_decay, config.momentum,
             None if config.decay_vectors else no_decay_on_vectors)


def apply_updates(params: Any, updates: Any, lr: jax.Array) -> Any:
  """p − η u for every leaf."""
  return jax.tree.map(lambda p, u: p - lr * u, params, updates)
