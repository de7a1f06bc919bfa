"""Convolutions that XLA's own code for a CPU is slow at, written there as products.

Elsewhere, and at all other shapes, a convolution is `jax.lax.conv_general_dilated`. Measured by
`python -m benchmarks.cpu_step --convolutions`.
"""
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

# Places of the output up to which the product over patches is faster.
_SMALL_MAP = 4


def convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]],
             **options: Any) -> jax.Array:
  """A convolution in two dimensions: y[b, v, w] = Σᵢⱼ x[b, s v + i − p, s w + j − p] K[i, j].

  Takes the place of `jax.lax.conv_general_dilated` in a `flax.linen.Conv`.

  Args:
    x: [B, H, W, C].
    kernel: K, [h, w, C, C'].
    strides: s along the two axes.
    padding: p before and after, along the two axes.
    **options: dilations, groups, precision and the like, as of `jax.lax.conv_general_dilated`.

  Returns:
    y, [B, H', W', C'].
  """
  def by_xla(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)

  def by_product(x, kernel):
    return product_of_patches(x, kernel, strides, padding, options.get('precision'))

  height, width = jax.eval_shape(by_xla, x, kernel).shape[1:3]
  dilated = max(*options['rhs_dilation'], *options['lhs_dilation']) > 1
  small = kernel.shape[:2] == (1, 1) or height * width <= _SMALL_MAP
  if dilated or options['feature_group_count'] > 1 or not small:
    return by_xla(x, kernel)
  return jax.lax.platform_dependent(x, kernel, cpu=by_product, default=by_xla)


def product_of_patches(x: jax.Array, kernel: jax.Array, strides: Sequence[int],
                       padding: Sequence[tuple[int, int]], precision: Any = None) -> jax.Array:
  """The convolution as one product of the patches [B H' W', k C] and the kernel [k C, C'].

  Only the k entries of the kernel that meet the image anywhere are multiplied: on a map of 1x1, one of nine.
  """
  rows, columns = (_taps(*sizes) for sizes in zip(x.shape[1:3], kernel.shape, strides, padding))
  height, width = (_places(*sizes) for sizes in zip(x.shape[1:3], kernel.shape, strides, padding))
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  down, across = (strides[0] * (height - 1) + 1, strides[1] * (width - 1) + 1)
  patches = [x[:, i:i + down:strides[0], j:j + across:strides[1]] for i in rows for j in columns]
  patches = jnp.concatenate(patches, axis=-1) if len(patches) > 1 else patches[0]
  kernel = kernel[rows.start:rows.stop, columns.start:columns.stop]
  return jnp.dot(patches, kernel.reshape(-1, kernel.shape[-1]), precision=precision)


def _places(size: int, kernel: int, stride: int, padding: tuple[int, int]) -> int:
  """Length of the output along an axis."""
  return (size + sum(padding) - kernel) // stride + 1


def _taps(size: int, kernel: int, stride: int, padding: tuple[int, int]) -> range:
  """The kernel's entries along an axis that meet the image at some place of the output."""
  places = range(_places(size, kernel, stride, padding))
  meets = [i for i in range(kernel) if any(0 <= stride * place + i - padding[0] < size for place in places)]
  return range(min(meets, default=0), max(meets, default=0) + 1)
