"""Batch normalisation in the four modes that the methods need, and layer normalisation."""
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from conic_jax.errors import UserError

MODES = ('batch', 'grouped', 'running', 'frozen')


class BatchNorm(nn.Module):
  """Batch normalisation: y = scale * (x - mean) / sqrt(var + epsilon) + bias.

  The mode selects the mean and variance to normalise with, and whether the running statistics change:
    'batch': those of the global batch; updates the running statistics.
    'grouped': those of each of `groups` parts of the global batch, regardless of the mesh: equal
      consecutive parts, or those given by `members`; updates the running statistics with the mean over
      the groups.
    'running': the running statistics from before this batch; then updates them with the batch's.
    'frozen': the running statistics; no update.

  The update is running = momentum * running + (1 - momentum) * batch, with the unbiased variance
  (PyTorch's rule; PyTorch's momentum is 1 - momentum).

  Attributes:
    momentum: share of the running statistics that an update keeps.
    epsilon: added to the variance.
    groups: parts of the batch in mode 'grouped'.
    scale_init: initialiser of the scale.
    use_bias: whether there is a bias.
  """
  momentum: float = 0.9
  epsilon: float = 1e-5
  groups: int = 8
  scale_init: Callable[..., jax.Array] = nn.initializers.ones
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, mode: str, mask: jax.Array | None = None,
               members: jax.Array | None = None) -> jax.Array:
    """Normalises the last axis.

    Args:
      x: [B, ..., C], of any floating dtype.
      mode: one of `MODES`.
      mask: bool [B]; False excludes an image from all statistics.
      members: int32 [B], the group of each image in mode 'grouped'. Shuffling these instead of the images
        is enough to shuffle a batch.

    Returns:
      An array with the shape and dtype of `x`.

    Raises:
      ValueError: if the mode is unknown.
      UserError: if the batch does not divide into the groups.
    """
    if mode not in MODES:
      raise ValueError(f'Batch norm has no mode {mode!r}; available: {", ".join(MODES)}.')
    chex.assert_shape([rows for rows in (mask, members) if rows is not None], (len(x),))
    features = x.shape[-1]
    scale = self.param('scale', self.scale_init, (features,), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (features,), jnp.float32) if self.use_bias else None
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (features,), jnp.float32)
    running_var = self.variable('batch_stats', 'var', jnp.ones, (features,), jnp.float32)

    members = members if mode == 'grouped' else None
    parts = 1 if mode != 'grouped' else self.groups if members is None else len(x)
    if x.shape[0] % parts:
      raise UserError(f'A batch of {x.shape[0]} images does not divide into {parts} batch-norm '
                      'groups: set config.batch_size to a multiple of them.')
    grouped = x.reshape(parts, -1, *x.shape[1:])
    mean, var = running_mean.value[None], running_var.value[None]
    if mode != 'frozen' and not self.is_initializing():
      batch_mean, batch_var, count = _statistics(grouped, mask, running_mean.value)
      if members is not None:
        batch_mean, batch_var, count = _joined(
          batch_mean, batch_var, count, members, self.groups, running_mean.value)
      new_mean, new_var = _over_groups(batch_mean, batch_var, count)
      if members is not None:
        belongs = jax.nn.one_hot(members, self.groups)
        batch_mean, batch_var = (jnp.matmul(belongs, statistic, precision=jax.lax.Precision.HIGHEST)
                                 for statistic in (batch_mean, batch_var))
      rate = jnp.where(jnp.any(count > 0), 1 - self.momentum, 0)
      running_mean.value += rate * (new_mean - running_mean.value)
      running_var.value += rate * (new_var - running_var.value)
      if mode != 'running':
        mean, var = batch_mean, batch_var

    multiplier = scale[None] * jax.lax.rsqrt(var + self.epsilon)
    grouped = grouped.astype(np.promote_types(x.dtype, np.float32))
    y = (grouped - _spread(mean, x.ndim)) * _spread(multiplier, x.ndim)
    if bias is not None:
      y += bias.reshape((1,) * x.ndim + (-1,))
    return y.astype(x.dtype).reshape(x.shape)


def layer_norm(dtype: Any, name: str) -> nn.LayerNorm:
  """Layer norm over the channels, with timm's ε and the variance as the mean squared deviation."""
  return nn.LayerNorm(1e-6, dtype=dtype, use_fast_variance=False, name=name)


def _statistics(x: jax.Array, mask: jax.Array | None, shift: jax.Array):
  """Mean and biased variance [G, C] of x [G, B/G, ..., C] in float32, and the number of values [G].

  Sum and sum of squares need one pass over the activations and one all-reduce, whereas
  mean((x - mean)^2) needs two in sequence. Subtracting the running mean first avoids cancellation
  when the mean is large compared to the standard deviation.
  """
  axes = tuple(range(1, x.ndim - 1))
  shift = jax.lax.stop_gradient(shift)
  x = x.astype(jnp.float32) - shift.reshape((1,) * (x.ndim - 1) + (-1,))
  kept = jnp.ones(x.shape[:2], bool) if mask is None else mask.reshape(x.shape[:2])
  pixels = x[0, 0, ..., 0].size
  count = pixels * jnp.sum(kept, axis=1, dtype=jnp.float32)
  if mask is not None:
    x = jnp.where(kept.reshape(*x.shape[:2], *(1,) * (x.ndim - 2)), x, 0)
  divisor = jnp.maximum(count, 1)[:, None]
  mean = jnp.sum(x, axes) / divisor
  var = jnp.maximum(jnp.sum(x * x, axes) / divisor - mean * mean, 0)
  return mean + shift[None], var, count


def _joined(mean: jax.Array, var: jax.Array, count: jax.Array, members: jax.Array, groups: int,
            shift: jax.Array):
  """Mean and biased variance [G, C] and number of values [G] per group, from those per image, in one sum."""
  shift = jax.lax.stop_gradient(shift)
  weighted = jax.nn.one_hot(members, groups) * count[:, None]
  offset = mean - shift[None]
  values = jnp.concatenate([jnp.ones_like(mean[:, :1]), offset, var + offset * offset], axis=1)
  sums = jnp.matmul(weighted.T, values, precision=jax.lax.Precision.HIGHEST)
  total, joined, squares = jnp.split(sums, (1, 1 + mean.shape[1]), axis=1)
  joined, squares = joined / jnp.maximum(total, 1), squares / jnp.maximum(total, 1)
  return joined + shift[None], jnp.maximum(squares - joined * joined, 0), total[:, 0]


def _over_groups(mean: jax.Array, var: jax.Array, count: jax.Array):
  """Means and unbiased variances averaged over the non-empty groups, [C] each."""
  present, total = count > 0, jnp.maximum(jnp.sum(count > 0), 1)
  weight = (present.astype(jnp.float32) / total.astype(jnp.float32))[:, None]
  unbiased = var * (count / jnp.maximum(count - 1, 1))[:, None]
  return jax.lax.stop_gradient((jnp.sum(weight * mean, 0), jnp.sum(weight * unbiased, 0)))


def _spread(statistic: jax.Array, ndim: int) -> jax.Array:
  """Reshapes [G, C] to broadcast against [G, B/G, ..., C]."""
  groups, features = statistic.shape
  return statistic.reshape(groups, *(1,) * (ndim - 1), features)
