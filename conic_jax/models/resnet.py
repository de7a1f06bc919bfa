"""Residual networks with PyTorch's layout, so that exported weights give the same features."""
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from conic_jax.models.cpu_convolution import convolve
from conic_jax.models.normalisation import BatchNorm

# Blocks per stage, and whether they are bottlenecks (He et al. 2016, table 1).
ARCHITECTURES = {
    'resnet18': ((2, 2, 2, 2), False),
    'resnet34': ((3, 4, 6, 3), False),
    'resnet50': ((3, 4, 6, 3), True),
    'resnet101': ((3, 4, 23, 3), True),
    'resnet152': ((3, 8, 36, 3), True),
}
STEMS = ('imagenet', 'cifar')
EXPANSION = 4


class ResNet(nn.Module):
  """Residual network (He et al. 2016), with the bottleneck's stride on its 3x3 convolution.

  Attributes:
    blocks: blocks per stage.
    bottleneck: bottleneck blocks (1x1, 3x3, 1x1) rather than basic ones (3x3, 3x3).
    width: multiplier of all channel counts.
    stem: 'imagenet' (7x7 with stride 2 and a pool, total stride 4) or 'cifar' (3x3, stride 1).
    zero_gamma: whether each block's last scale starts at 0, so that blocks start as the identity.
    output_stride: maximum total stride; stages beyond it dilate instead.
    groups: batch-norm groups in mode 'grouped'.
    dtype: compute dtype.
    remat: compute the blocks again for the gradients, rather than keep what is inside them.
  """
  blocks: tuple[int, ...]
  bottleneck: bool
  width: float = 1.0
  stem: str = 'imagenet'
  zero_gamma: bool = False
  output_stride: int = 32
  groups: int = 8
  dtype: Any = jnp.float32
  remat: bool = False

  @property
  def num_features(self) -> int:
    """Number of pooled features."""
    return self._channels(len(self.blocks) - 1) * (EXPANSION if self.bottleneck else 1)

  @nn.compact
  def __call__(self, images: jax.Array, mode: str = 'frozen', mask: jax.Array | None = None,
               members: jax.Array | None = None, stages: bool = False) -> jax.Array | Mapping[str, jax.Array]:
    """Encodes images.

    Args:
      images: float [B, H, W, 3], normalised.
      mode: batch-norm mode.
      mask: bool [B]; False excludes an image from the batch-norm statistics.
      members: int32 [B], the batch-norm group of each image in mode 'grouped'; None for consecutive groups.
      stages: also return the maps.

    Returns:
      Pooled features, float32 [B, num_features]; with `stages` a mapping of these, 'features', and
      the maps [B, h, w, C] in the compute dtype: 'stem' (the input of stage 1), 'stage1', ….
    """
    chex.assert_shape(images, (None, None, None, 3))
    x = Stem(self._channels(0), self.stem, self.groups, self.dtype, name='stem')(
        images.astype(self.dtype), mode, mask, members)
    maps = {'stem': x}
    total_stride, dilation = 4 if self.stem == 'imagenet' else 1, 1
    for index, count in enumerate(self.blocks):
      stride, first_dilation = 1 if index == 0 else 2, dilation
      if total_stride * stride > self.output_stride:
        stride, dilation = 1, dilation * stride
      total_stride *= stride
      x = Stage(count, self._channels(index), self.bottleneck, stride, first_dilation, dilation,
                self.zero_gamma, self.groups, self.dtype, self.remat,
                name=f'stage{index + 1}')(x, mode, mask, members)
      maps[f'stage{index + 1}'] = x
    features = jnp.mean(x, (1, 2), dtype=jnp.float32)
    return {**maps, 'features': features} if stages else features

  def _channels(self, stage: int) -> int:
    return int(64 * self.width) * 2**stage


class Stem(nn.Module):
  """The first layers, from pixels to the first map."""
  channels: int
  kind: str
  groups: int
  dtype: Any

  @nn.compact
  def __call__(self, x, mode, mask, members):
    size, stride = (7, 2) if self.kind == 'imagenet' else (3, 1)
    x = conv(self.channels, size, self.dtype, 'conv', stride)(x)
    x = nn.relu(BatchNorm(groups=self.groups, name='norm')(x, mode, mask, members))
    if self.kind == 'imagenet':
      x = max_pool(x)
    return x


class Stage(nn.Module):
  """Blocks with the same map size; the first one changes size and channels."""
  count: int
  channels: int
  bottleneck: bool
  stride: int
  first_dilation: int
  dilation: int
  zero_gamma: bool
  groups: int
  dtype: Any
  remat: bool

  @nn.compact
  def __call__(self, x, mode, mask, members):
    block = nn.remat(Block, static_argnums=2) if self.remat else Block
    for index in range(self.count):
      stride, first_dilation = (
          (self.stride, self.first_dilation) if index == 0 else (1, self.dilation))
      x = block(self.channels, self.bottleneck, stride, first_dilation, self.dilation,
                self.zero_gamma, self.groups, self.dtype, name=f'block{index}')(x, mode, mask, members)
    return x


class Block(nn.Module):
  """A residual block; its strided convolution has the first dilation.

  The convolutions after an omitted stride are dilated by it, but the one that omits it is not: every
  second pixel of the map is then what the strided network would give.
  """
  channels: int
  bottleneck: bool
  stride: int
  first_dilation: int
  dilation: int
  zero_gamma: bool
  groups: int
  dtype: Any

  @nn.compact
  def __call__(self, x, mode, mask, members):
    # (size, channels, stride, dilation) of each convolution.
    if self.bottleneck:
      layers = ((1, self.channels, 1, 1),
                (3, self.channels, self.stride, self.first_dilation),
                (1, self.channels * EXPANSION, 1, 1))
    else:
      layers = ((3, self.channels, self.stride, self.first_dilation),
                (3, self.channels, 1, self.dilation))
    y = x
    for index, (size, channels, stride, dilation) in enumerate(layers, 1):
      last = index == len(layers)
      scale_init = nn.initializers.zeros if last and self.zero_gamma else nn.initializers.ones
      y = conv(channels, size, self.dtype, f'conv{index}', stride, dilation)(y)
      y = BatchNorm(groups=self.groups, scale_init=scale_init, name=f'norm{index}')(y, mode, mask, members)
      y = y if last else nn.relu(y)
    if self.stride != 1 or x.shape[-1] != y.shape[-1]:
      x = conv(y.shape[-1], 1, self.dtype, 'shortcut', self.stride)(x)
      x = BatchNorm(groups=self.groups, name='shortcut_norm')(x, mode, mask, members)
    return nn.relu(x + y)


def conv(channels: int, size: int, dtype: Any, name: str, stride: int = 1,
         dilation: int = 1) -> nn.Conv:
  """A convolution without bias, padded by (size - 1) / 2 times the dilation on each side."""
  padding = (size - 1) // 2 * dilation
  return nn.Conv(channels, (size, size), (stride, stride), ((padding, padding),) * 2,
                 kernel_dilation=(dilation, dilation), use_bias=False, dtype=dtype,
                 kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'), name=name,
                 conv_general_dilated=convolve)


def max_pool(x: jax.Array) -> jax.Array:
  """3x3 max pooling with stride 2, padded by 1 on each side, as in PyTorch.

  Along an axis, each window is an odd entry and the next even and odd ones, so reshaping into pairs
  and taking maxima gives the pool. Its gradient is elementwise; XLA's gradient of reduce_window is
  a scatter, which takes a third of a small network's step on CPU.

  Args:
    x: [B, H, W, C].

  Returns:
    [B, ceil(H / 2), ceil(W / 2), C].
  """
  chex.assert_rank(x, 4)
  for axis in (1, 2):
    pairs = -(-x.shape[axis] // 2)
    x = _pad(x, axis, 0, 2 * pairs - x.shape[axis])
    x = x.reshape(*x.shape[:axis], pairs, 2, *x.shape[axis + 1:])
    even, odd = (jax.lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in (0, 1))
    before = jax.lax.slice_in_dim(_pad(odd, axis, 1, 0), 0, pairs, axis=axis)
    x = jnp.maximum(jnp.maximum(before, even), odd)
  return x


def _pad(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
  widths = [(0, 0)] * x.ndim
  widths[axis] = (before, after)
  return jnp.pad(x, widths, constant_values=-jnp.inf)
