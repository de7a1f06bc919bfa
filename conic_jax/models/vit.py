"""Vision transformers with timm's layout, so that exported weights give the same features."""
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from conic_jax.errors import UserError
from conic_jax.models.normalisation import layer_norm

# Channels of the networks, which all have `BLOCKS` (Dosovitskiy et al. 2021, table 1; Touvron et al. 2021,
# table 1).
CHANNELS = {'vit_tiny': 192, 'vit_small': 384, 'vit_base': 768}
# Blocks per stage: a transformer has none, and its maps are taken after each quarter.
BLOCKS = (3, 3, 3, 3)
# Pixels per side of a patch, by the stem.
PATCHES = {'imagenet': 16, 'cifar': 4}
POSITIONS = ('sincos', 'learned')
HEAD_CHANNELS = 64
HIDDEN = 4                      # width of a block's hidden layer, as a multiple of the channels


def scaled(channels: int, width: float) -> int:
  """The channels times `width`: whole heads, or fewer channels than one head has, a multiple of 4."""
  unit = HEAD_CHANNELS if channels * width >= HEAD_CHANNELS else 4
  return unit * max(1, round(channels * width / unit))


def heads(channels: int) -> int:
  """How many heads the attention has."""
  return max(1, channels // HEAD_CHANNELS)


class VisionTransformer(nn.Module):
  """Vision transformer (Dosovitskiy et al. 2021) with pre-norm blocks; its features are the class token's.

  Weights start as MoCo v3's (Chen, Xie and He 2021, section 5.1 and public code). There is no batch norm:
  the modes make no difference.

  Attributes:
    blocks: blocks per stage; after each stage the patches' tokens are a map.
    channels: width of a token, with a head of attention per 64 channels.
    patch: pixels per side of a patch.
    positions: 'sincos', fixed and for any image size, or 'learned', for the size of the first images, and
      resized for others.
    frozen_patches: leave the patches' projection random, which keeps training stable (MoCo v3, section 4.3).
    output_stride: if it is below the patch's side, maps are resized to this stride.
    dtype: compute dtype.
    remat: compute the blocks again for the gradients, rather than keep what is inside them.
  """
  blocks: tuple[int, ...]
  channels: int
  patch: int = 16
  positions: str = 'sincos'
  frozen_patches: bool = False
  output_stride: int = 32
  dtype: Any = jnp.float32
  remat: bool = False

  @property
  def num_features(self) -> int:
    """Number of features."""
    return self.channels

  @nn.compact
  def __call__(self, images: jax.Array, mode: str = 'frozen', mask: jax.Array | None = None,
               members: jax.Array | None = None, stages: bool = False) -> jax.Array | Mapping[str, jax.Array]:
    """Encodes images.

    Args:
      images: float [B, H, W, 3], normalised; H and W are multiples of `patch`.
      mode, mask, members: of batch norm, which is absent here.
      stages: also return the maps.

    Returns:
      The class token, float32 [B, channels]; with `stages` a mapping of it, 'features', and the maps
      [B, h, w, channels] in the compute dtype: 'stem' (patches and positions), 'stage1', …, of which the
      last one is normalised.

    Raises:
      UserError: if the patches do not cover the images.
    """
    chex.assert_shape(images, (None, None, None, 3))
    patches = Patches(self.channels, self.patch, self.positions, self.frozen_patches, self.dtype,
                      name='stem')(images.astype(self.dtype))
    count, height, width, _ = patches.shape
    token = self.param('token', nn.initializers.normal(1e-6), (self.channels,), jnp.float32)
    x = jnp.concatenate([jnp.broadcast_to(token.astype(self.dtype), (count, 1, self.channels)),
                         patches.reshape(count, -1, self.channels)], axis=1)
    maps = {'stem': patches}
    for index, blocks in enumerate(self.blocks, 1):
      x = Stage(blocks, self.dtype, self.remat, name=f'stage{index}')(x)
      if index == len(self.blocks):
        x = layer_norm(self.dtype, 'norm')(x)
      maps[f'stage{index}'] = x[:, 1:].reshape(count, height, width, self.channels)
    features = x[:, 0].astype(jnp.float32)
    return {**{name: self._strided(a_map) for name, a_map in maps.items()}, 'features': features} if stages \
        else features

  def _strided(self, a_map: jax.Array) -> jax.Array:
    if self.patch <= self.output_stride:
      return a_map
    count, height, width, channels = a_map.shape
    size = (height * self.patch // self.output_stride, width * self.patch // self.output_stride)
    return jax.image.resize(a_map, (count, *size, channels), 'bilinear', antialias=False)


class Patches(nn.Module):
  """Tokens [B, h, w, C] of an image's patches: their projections, plus their positions."""
  channels: int
  patch: int
  positions: str
  frozen: bool
  dtype: Any

  @nn.compact
  def __call__(self, images):
    count, height, width, colours = images.shape
    if height % self.patch or width % self.patch:
      raise UserError(f'Patches of {self.patch} pixels do not cover images of {height} × {width}: set '
                      'config.views.size to a multiple of config.encoder.patch, or the patch to a divisor.')
    height, width, shape = height // self.patch, width // self.patch, (self.patch, self.patch, colours)
    kernel = self._weight('kernel', _projection, (*shape, self.channels)).astype(self.dtype)
    bias = self._weight('bias', nn.initializers.zeros, (self.channels,)).astype(self.dtype)
    # A convolution whose stride is its size is a product.
    pixels = images.reshape(count, height, self.patch, width, self.patch, colours).swapaxes(2, 3)
    x = pixels.reshape(count, height, width, -1) @ kernel.reshape(-1, self.channels)
    return x + bias[None, None, None] + self._positions(height, width).astype(self.dtype)[None]

  def _weight(self, name, init, shape):
    if not self.frozen:
      return self.param(name, init, shape, jnp.float32)
    # Kept with the statistics, which neither the optimizer nor its weight decay touches.
    return self.variable('batch_stats', name, lambda: init(self.make_rng('params'), shape, jnp.float32)).value

  def _positions(self, height, width):
    if self.positions == 'sincos':
      return sincos_positions(height, width, self.channels)
    shape = (height, width, self.channels)
    if self.has_variable('params', 'positions'):
      shape = self.get_variable('params', 'positions').shape
    return resized_positions(self.param('positions', nn.initializers.normal(0.02), shape, jnp.float32),
                             height, width)


class Stage(nn.Module):
  """Consecutive blocks."""
  count: int
  dtype: Any
  remat: bool

  @nn.compact
  def __call__(self, x):
    block = nn.remat(Block) if self.remat else Block
    for index in range(self.count):
      x = block(self.dtype, name=f'block{index}')(x)
    return x


class Block(nn.Module):
  """Attention, then a hidden layer of each token; both add to the tokens [B, T, C]."""
  dtype: Any

  @nn.compact
  def __call__(self, x):
    channels = x.shape[-1]
    x = x + self._attention(layer_norm(self.dtype, 'norm1')(x))
    y = dense(HIDDEN * channels, self.dtype, 'hidden')(layer_norm(self.dtype, 'norm2')(x))
    return x + dense(channels, self.dtype, 'output')(nn.gelu(y, approximate=False))

  def _attention(self, x):
    count, tokens, channels = x.shape
    # Each of query, key and value starts as a Glorot-uniform matrix of its own.
    init = nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform')
    parts = dense(3 * channels, self.dtype, 'qkv', init)(x)
    parts = parts.reshape(count, tokens, 3, heads(channels), -1)
    query, key, value = (parts[:, :, index] for index in range(3))
    attended = jax.nn.dot_product_attention(query, key, value)
    return dense(channels, self.dtype, 'projection')(attended.reshape(count, tokens, channels))


def dense(channels: int, dtype: Any, name: str,
          init: Any = nn.initializers.xavier_uniform()) -> nn.Dense:  # noqa: B008
  """A linear layer with a bias."""
  return nn.Dense(channels, dtype=dtype, kernel_init=init, name=name)


def sincos_positions(height: int, width: int, channels: int) -> jax.Array:
  """Fixed positions: sines and cosines of the row, then of the column, in a quarter of the channels each.

  The frequencies are 10000^(−i / (C/4)), i = 0 … C/4 − 1.

  Args:
    height, width: of the map.
    channels: C, a multiple of 4.

  Returns:
    float32 [height, width, C].

  Source: MoCo v3's public code.
  """
  quarter = channels // 4
  frequencies = 10_000 ** (-jnp.arange(quarter, dtype=jnp.float32) / quarter)
  def waves(length):
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
  return jnp.concatenate([
    jnp.broadcast_to(waves(height)[:, None], (height, width, 2 * quarter)),
    jnp.broadcast_to(waves(width)[None], (height, width, 2 * quarter))], axis=-1)


def resized_positions(positions: jax.Array, height: int, width: int) -> jax.Array:
  """Learned positions [h, w, C] for a map of another size, by antialiased bicubic interpolation as timm."""
  if positions.shape[:2] == (height, width):
    return positions
  return jax.image.resize(positions, (height, width, positions.shape[-1]), 'cubic')


def _projection(key, shape, dtype):
  """A Glorot-uniform matrix from a patch's pixels to the channels."""
  *pixels, channels = shape
  size = pixels[0] * pixels[1] * pixels[2]
  return nn.initializers.xavier_uniform()(key, (size, channels), dtype).reshape(shape)
