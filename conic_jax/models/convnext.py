"""ConvNeXts with timm's layout, so that exported weights give the same features."""
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from conic_jax.errors import UserError
from conic_jax.models.normalisation import layer_norm

# Blocks per stage, and channels of the first one (Liu et al. 2022, section 3).
ARCHITECTURES = {'convnext_tiny': ((3, 3, 9, 3), 96), 'convnext_small': ((3, 3, 27, 3), 96)}
# Pixels per side of the patches that the first layer projects, by the stem.
PATCHES = {'imagenet': 4, 'cifar': 1}
SIZE = 7                        # of the depthwise convolutions
HIDDEN = 4                      # width of a block's hidden layer, as a multiple of its channels
LAYER_SCALE = 1e-6              # with which a block's output starts


class ConvNeXt(nn.Module):
  """ConvNeXt (Liu et al. 2022). There is no batch norm: the modes make no difference.

  Attributes:
    blocks: blocks per stage.
    channels: of the first stage; each further one doubles them.
    patch: pixels per side of the first layer's patches, and its stride.
    output_stride: maximum total stride; stages beyond it dilate instead.
    dtype: compute dtype.
    remat: compute the blocks again for the gradients, rather than keep what is inside them.
  """
  blocks: tuple[int, ...]
  channels: int
  patch: int = 4
  output_stride: int = 32
  dtype: Any = jnp.float32
  remat: bool = False

  @property
  def num_features(self) -> int:
    """Number of pooled features."""
    return self.channels * 2**(len(self.blocks) - 1)

  @nn.compact
  def __call__(self, images: jax.Array, mode: str = 'frozen', mask: jax.Array | None = None,
               members: jax.Array | None = None, stages: bool = False) -> jax.Array | Mapping[str, jax.Array]:
    """Encodes images.

    Args:
      images: float [B, H, W, 3], normalised.
      mode, mask, members: of batch norm, which is absent here.
      stages: also return the maps.

    Returns:
      Pooled and normalised features, float32 [B, num_features]; with `stages` a mapping of these, 'features',
      and the maps [B, h, w, C] in the compute dtype: 'stem' (the input of stage 1), 'stage1', ….

    Raises:
      UserError: if the images are too small for the strides.
    """
    chex.assert_shape(images, (None, None, None, 3))
    x = convolution(self.channels, self.patch, self.patch, 0, 1, self.dtype, 'stem')(
      images.astype(self.dtype))
    x = layer_norm(self.dtype, 'stem_norm')(x)
    maps, total_stride, dilation = {'stem': x}, self.patch, 1
    for index, count in enumerate(self.blocks):
      stride, first_dilation = 1 if index == 0 else 2, dilation
      if total_stride * stride > max(self.output_stride, self.patch):
        stride, dilation = 1, dilation * stride
      total_stride *= stride
      x = Stage(count, self.channels * 2**index, stride, first_dilation, dilation, self.dtype,
                self.remat, name=f'stage{index + 1}')(x)
      maps[f'stage{index + 1}'] = x
    if not x.size:
      raise UserError(f'Images of {images.shape[1]} × {images.shape[2]} pixels are too small for patches of '
                      f'{self.patch} and a ConvNeXt of {len(self.blocks)} stages: set config.encoder.patch '
                      'lower, or config.views.size higher.')
    features = layer_norm(jnp.float32, 'norm')(jnp.mean(x, (1, 2), dtype=jnp.float32))
    return {**maps, 'features': features} if stages else features


class Stage(nn.Module):
  """Blocks with the same map size; before them, all stages but the first halve the map."""
  count: int
  channels: int
  stride: int
  first_dilation: int
  dilation: int
  dtype: Any
  remat: bool

  @nn.compact
  def __call__(self, x):
    if x.shape[-1] != self.channels:
      # Without its stride, the convolution is dilated as those before it, and every second pixel of the map
      # is what the strided network would give.
      padding = 0 if self.stride > 1 else self.first_dilation
      x = layer_norm(self.dtype, 'shortcut_norm')(x)
      x = convolution(self.channels, 2, self.stride, padding, self.first_dilation, self.dtype, 'shortcut')(x)
    block = nn.remat(Block) if self.remat else Block
    for index in range(self.count):
      x = block(self.dilation, self.dtype, name=f'block{index}')(x)
    return x


class Block(nn.Module):
  """A depthwise convolution, then a hidden layer of each pixel, scaled, added to the map."""
  dilation: int
  dtype: Any

  @nn.compact
  def __call__(self, x):
    channels, margin = x.shape[-1], SIZE // 2 * self.dilation
    y = nn.Conv(channels, (SIZE, SIZE), padding=((margin, margin),) * 2,
                kernel_dilation=(self.dilation, self.dilation), feature_group_count=channels,
                dtype=self.dtype, kernel_init=_weights, name='depthwise')(x)
    y = dense(HIDDEN * channels, self.dtype, 'hidden')(layer_norm(self.dtype, 'norm')(y))
    y = dense(channels, self.dtype, 'output')(nn.gelu(y, approximate=False))
    scale = self.param('scale', nn.initializers.constant(LAYER_SCALE), (channels,), jnp.float32)
    return x + y * scale.astype(self.dtype)[None, None, None]


_weights = nn.initializers.truncated_normal(0.02)


def convolution(channels: int, size: int, stride: int, padding: int, dilation: int, dtype: Any,
                name: str) -> nn.Conv:
  """A convolution with a bias, padded at the end alone."""
  return nn.Conv(channels, (size, size), (stride, stride), ((0, padding),) * 2,
                 kernel_dilation=(dilation, dilation), dtype=dtype, kernel_init=_weights, name=name)


def dense(channels: int, dtype: Any, name: str) -> nn.Dense:
  """A linear layer with a bias."""
  return nn.Dense(channels, dtype=dtype, kernel_init=_weights, name=name)
