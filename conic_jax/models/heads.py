"""Projection heads."""
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from conic_jax.models.normalisation import BatchNorm


class MLP(nn.Module):
  """A projection head with one hidden layer, or a single linear layer.

  With `norm` it is Linear, BN, ReLU, Linear, BN (SimCLR, Chen et al. 2020, and ConIC); without,
  Linear, ReLU, Linear (MoCo v2); with `norm` but not `norm_output`, Linear, BN, ReLU, Linear (BYOL,
  Grill et al. 2020). A linear layer before a batch norm has no bias, since the norm would cancel it.
  SimCLR's and BYOL's public code also omit the last layer's bias. On a map [B, h, w, F] the layers are
  1×1 convolutions.

  Attributes:
    hidden: width of the hidden layer; 0 for a single linear layer, without norm.
    features: width of the output.
    norm: whether a batch norm follows each linear layer.
    norm_output: with `norm`, whether a batch norm also follows the last layer.
    groups: batch-norm groups in mode 'grouped'.
    dtype: compute dtype.
    output_bias: whether the last layer (batch norm or linear) has a bias.
  """
  hidden: int
  features: int
  norm: bool = False
  norm_output: bool = True
  groups: int = 8
  dtype: Any = jnp.float32
  output_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, mode: str = 'frozen',
               mask: jax.Array | None = None, members: jax.Array | None = None) -> jax.Array:
    """Projects features.

    Args:
      x: [B, ..., F].
      mode: batch-norm mode.
      mask: bool [B]; False excludes a row from the batch-norm statistics.
      members: int32 [B], the batch-norm group of each row in mode 'grouped'; None for consecutive groups.

    Returns:
      float32 [B, ..., features].
    """
    norm = self.norm and self.hidden > 0
    norm_output = norm and self.norm_output
    if self.hidden:
      x = linear(x, self.hidden, not norm, self.dtype, 'linear1')
      if norm:
        x = BatchNorm(groups=self.groups, name='norm1')(x, mode, mask, members)
      x = nn.relu(x)
    use_bias = self.output_bias and not norm_output
    x = linear(x, self.features, use_bias, self.dtype, 'linear2' if self.hidden else 'linear')
    if norm_output:
      last = BatchNorm(groups=self.groups, use_bias=self.output_bias, name='norm2')
      x = last(x.astype(jnp.float32), mode, mask, members)
    return x.astype(jnp.float32)


def mlp_of(params: Mapping[str, Any], dtype: Any = jnp.float32) -> MLP:
  """The head to which these parameters belong.

  Args:
    params: parameters of an `MLP`, by layer.
    dtype: compute dtype.
  """
  last = params['linear2' if 'linear2' in params else 'linear']
  hidden = params['linear1']['kernel'].shape[1] if 'linear1' in params else 0
  return MLP(hidden, last['kernel'].shape[1], norm='norm1' in params, norm_output='norm2' in params,
             dtype=dtype, output_bias='bias' in params.get('norm2', last))


def linear(x: jax.Array, features: int, use_bias: bool, dtype: Any, name: str) -> jax.Array:
  """Applies a linear layer with PyTorch's initialisation: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
  bound = x.shape[-1]**-0.5

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)
  return nn.Dense(features, use_bias=use_bias, dtype=dtype, kernel_init=init, bias_init=init,
                  name=name)(x)
