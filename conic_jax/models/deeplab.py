"""DeepLabV3 on a dilated encoder, with torchvision's layout."""
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from conic_jax.models.build import stage_names
from conic_jax.models.normalisation import BatchNorm
from conic_jax.models.resnet import conv

_ASPP_DROPOUT, _AUXILIARY_DROPOUT = 0.5, 0.1


class DeepLabV3(nn.Module):
  """Semantic segmentation by atrous spatial pyramid pooling, with an auxiliary FCN head.

  The head is torchvision's: ASPP with global pooling, 3x3 convolution, 1x1 classifier. The auxiliary head
  is on the second-to-last stage, stage 3 of a four-stage ResNet.

  Attributes:
    backbone: the encoder; its output stride is that of the maps.
    num_classes: C.
    rates: dilation of each atrous convolution; (12, 24, 36) at output stride 8.
    channels: channels of every layer in the head.

  Source: Chen et al. 2017, Rethinking Atrous Convolution for Semantic Image Segmentation; ConIC, Appendix C.
  """
  backbone: nn.Module
  num_classes: int
  rates: tuple[int, ...] = (12, 24, 36)
  channels: int = 256

  @nn.compact
  def __call__(self, images: jax.Array, mode: str = 'frozen', mask: jax.Array | None = None,
               auxiliary: bool = False) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Classifies every pixel.

    Args:
      images: float [B, H, W, 3], normalised.
      mode: batch-norm mode; in all but 'frozen' the heads apply dropout, with the RNG 'dropout'.
      mask: bool [B]; False excludes an image from the batch-norm statistics.
      auxiliary: also return the auxiliary logits.

    Returns:
      Logits float32 [B, H, W, C], upsampled bilinearly (half-pixel centres); with `auxiliary` a pair of main
      and auxiliary logits.
    """
    maps: Any = self.backbone(images, mode, mask, stages=True)
    *_, before_last, last = (maps[name] for name in ('stem', *stage_names(maps)) if name in maps)
    dtype, drops = self.backbone.dtype, mode != 'frozen'
    # Both heads are always built, so that the parameters do not depend on `auxiliary`.
    aux = ConvNormReLU(before_last.shape[-1] // 4, 3, dtype, name='aux_conv')(before_last, mode, mask)
    aux = nn.Dropout(_AUXILIARY_DROPOUT, deterministic=not drops)(aux)
    aux = nn.Conv(self.num_classes, (1, 1), name='aux_classifier')(aux.astype(jnp.float32))
    x = ASPP(self.rates, self.channels, dtype, name='aspp')(last, mode, mask)
    x = nn.Dropout(_ASPP_DROPOUT, deterministic=not drops)(x)
    x = ConvNormReLU(self.channels, 3, dtype, name='conv')(x, mode, mask)
    x = nn.Conv(self.num_classes, (1, 1), name='classifier')(x.astype(jnp.float32))
    size = images.shape[1:3]
    return (_upsample(x, size), _upsample(aux, size)) if auxiliary else _upsample(x, size)


class ASPP(nn.Module):
  """Atrous spatial pyramid pooling: 1x1, dilated 3x3s and the map's mean, merged by a 1x1."""
  rates: tuple[int, ...]
  channels: int
  dtype: Any

  @nn.compact
  def __call__(self, x, mode, mask):
    branches = [ConvNormReLU(self.channels, 1, self.dtype, name='point')(x, mode, mask)]
    branches += [ConvNormReLU(self.channels, 3, self.dtype, rate, name=f'atrous{index}')(x, mode, mask)
                 for index, rate in enumerate(self.rates, 1)]
    mean = jnp.mean(x, (1, 2), keepdims=True, dtype=jnp.float32).astype(self.dtype)
    pooled = ConvNormReLU(self.channels, 1, self.dtype, name='pool')(mean, mode, mask)
    branches.append(jnp.broadcast_to(pooled, branches[0].shape))
    joined = jnp.concatenate(branches, axis=-1)
    return ConvNormReLU(self.channels, 1, self.dtype, name='project')(joined, mode, mask)


class ConvNormReLU(nn.Module):
  """A convolution without bias, batch norm and ReLU."""
  channels: int
  size: int
  dtype: Any
  dilation: int = 1

  @nn.compact
  def __call__(self, x, mode, mask):
    x = conv(self.channels, self.size, self.dtype, 'conv', dilation=self.dilation)(x)
    return nn.relu(BatchNorm(name='norm')(x, mode, mask))


def _upsample(logits, size):
  shape = (logits.shape[0], *size, logits.shape[-1])
  return jax.image.resize(logits, shape, 'bilinear', antialias=False)
