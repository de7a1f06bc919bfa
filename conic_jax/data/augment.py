"""Colour, blur and normalisation of views on the device, after the host has cropped them.

Every image is processed independently, with its own draws, so a sharded batch needs no communication.
Images are split into colour planes [B, V, H, W] so that the arithmetic runs along the rows. On CPU
the plain forms below were faster than dm-pix under vmap, the blur most of all.
"""
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from conic_jax.views import Views

# Draws of a view. All are always drawn, so that one setting does not shift the draws of another.
DRAWS = ('jitter', 'brightness', 'contrast', 'saturation', 'hue', 'order', 'grayscale', 'blur',
         'sigma', 'solarise')
CHANGES = ('brightness', 'contrast', 'saturation', 'hue')
# Rec. 601 luma.
LUMA = (0.299, 0.587, 0.114)

Planes = tuple[jax.Array, ...]  # red, green, blue


def view_keys(seed: int, epoch: int | jax.Array, ids: jax.Array, num_views: int,
              first_view: int | jax.Array = 0) -> jax.Array:
  """Makes the key of each view, a function of seed, epoch, image and view only.

  Args:
    seed: seed of the run.
    epoch: epoch number.
    ids: int32 [B].
    num_views: views per image, V.
    first_view: index of the first of them among all views of the image.

  Returns:
    Keys [B, V].
  """
  epoch_key = jax.random.fold_in(jax.random.key(seed), epoch)
  views = first_view + jnp.arange(num_views)
  image_keys = jax.vmap(lambda id: jax.random.fold_in(epoch_key, id))(ids)
  return jax.vmap(lambda key: jax.vmap(lambda view: jax.random.fold_in(key, view))(views))(
      image_keys)


def augment(images: jax.Array, flip: jax.Array, keys: jax.Array, spec: Views) -> jax.Array:
  """Applies flip, colour jitter, grayscale, blur and normalisation, as SimCLR (Chen et al. 2020).

  Solarises before normalising, as BYOL (Grill et al. 2020).

  Args:
    images: uint8 [B, V, H, W, 3].
    flip: bool [B, V], which views are mirrored.
    keys: [B, V], from `view_keys`.
    spec: the augmentations and their probabilities; disabled ones cost nothing.

  Returns:
    float32 [B, V, H, W, 3].
  """
  chex.assert_shape(images, (None, None, None, None, 3))
  chex.assert_shape([flip, keys], images.shape[:2])
  images = jnp.where(flip[..., None, None, None], images[..., ::-1, :], images)
  draws = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (len(DRAWS),))))(keys)
  draws = {name: draws[..., index, None, None] for index, name in enumerate(DRAWS)}
  planes = tuple(images[..., channel].astype(jnp.float32) / 255 for channel in range(3))
  if spec.jitter > 0 and spec.strength > 0:
    planes = jitter(planes, draws, spec)
  if spec.grayscale > 0:
    luma = grayscale(planes)
    planes = tuple(jnp.where(draws['grayscale'] < spec.grayscale, luma, plane) for plane in planes)
  radius = int(spec.blur_kernel * images.shape[-2] / 2)
  if spec.blur > 0 and radius > 0:
    low, high = spec.blur_sigma
    sigma = jnp.where(draws['blur'] < spec.blur, low + (high - low) * draws['sigma'], 0)
    weights = gaussian(sigma, radius)
    planes = tuple(blur(plane, weights) for plane in planes)
  if spec.solarise > 0:
    inverted = draws['solarise'] < spec.solarise
    planes = tuple(jnp.where(inverted & (plane >= 0.5), 1 - plane, plane) for plane in planes)
  return standardise(planes, spec)


def normalise(images: jax.Array, spec: Views) -> jax.Array:
  """Normalises images without augmentation: (image / 255 - mean) / std.

  Args:
    images: uint8 [..., 3].
    spec: gives the mean and the standard deviation.

  Returns:
    float32 [..., 3].
  """
  chex.assert_axis_dimension(images, -1, 3)
  return standardise(tuple(images[..., channel].astype(jnp.float32) / 255 for channel in range(3)), spec)


def standardise(planes: Planes, spec: Views) -> jax.Array:
  """Subtracts the mean from each plane, divides by the standard deviation and stacks the planes."""
  return jnp.stack([(plane - mean) / std
                    for plane, mean, std in zip(planes, spec.mean, spec.std, strict=True)], axis=-1)


def jitter(planes: Planes, draws: dict[str, jax.Array], spec: Views) -> Planes:
  """Changes brightness, contrast, saturation and hue in a random order, clipping after each.

  Every view has its own order; its n-th change happens in the n-th iteration of a loop. Without
  the loop XLA fuses the changes and computes the early ones many times.

  Args:
    planes: three planes, float32 [B, V, H, W], from 0 to 1.
    draws: uniform [B, V, 1, 1] by name.
    spec: gives the ranges and the probability.
  """
  applied = draws['jitter'] < spec.jitter
  ranges = {name: spec.strength * getattr(spec, name) for name in CHANGES}
  names = [name for name in CHANGES if ranges[name] > 0]
  amounts = {}
  for name in names:
    added = name == 'hue' or (name == 'brightness' and spec.additive_brightness)
    middle, lowest = (0, -ranges[name]) if added else (1, 0)
    low, high = max(lowest, middle - ranges[name]), middle + ranges[name]
    amounts[name] = jnp.where(applied, low + (high - low) * draws[name], middle)
  orders = np.array(list(itertools.permutations(range(len(names)))), np.int32)
  order = jnp.asarray(orders)[jnp.int32(draws['order'] * len(orders))]

  def change(turn, planes):
    chosen = {name: order[..., turn] == index for index, name in enumerate(names)}
    changed = blend(planes, chosen, amounts, spec)
    if 'hue' in names:
      turned = adjust_hue(planes, amounts['hue'])
      changed = tuple(jnp.where(chosen['hue'] & applied, new, old)
                      for new, old in zip(turned, changed, strict=True))
    return changed
  return jax.lax.fori_loop(0, len(names), change, planes)


def blend(planes: Planes, chosen: dict[str, jax.Array], factors: dict[str, jax.Array], spec: Views) -> Planes:
  """Changes brightness, contrast or saturation: clip(f * x + (1 - f) * target, 0, 1).

  The brightness target is 0; if brightness is additive, f is 1 and the draw is added. In torchvision, the
  contrast target is the mean luma and the saturation target is the luma. In TensorFlow, the contrast target
  is the mean of each channel, and the HSV saturation s becomes min(f * s, 1) at the same hue and value v,
  which is the target v with min(f, 1 / s) for f.

  Args:
    planes: three planes, float32 [B, V, H, W], from 0 to 1.
    chosen: bool [B, V, 1, 1] by name, at most one of them true; if none is, nothing changes.
    factors: f, or the value to add, float32 [B, V, 1, 1] by name.
    spec: gives `colour` and `additive_brightness`.
  """
  factor, shift, targets = jnp.float32(1), None, [jnp.float32(0)] * 3
  if 'brightness' in chosen and spec.additive_brightness:
    shift = jnp.where(chosen['brightness'], factors['brightness'], 0)
  elif 'brightness' in chosen:
    factor = jnp.where(chosen['brightness'], factors['brightness'], factor)
  if 'contrast' in chosen:
    factor = jnp.where(chosen['contrast'], factors['contrast'], factor)
    toned = planes if spec.colour == 'tensorflow' else (grayscale(planes),) * 3
    targets = [jnp.where(chosen['contrast'], jnp.mean(tone, (-2, -1), keepdims=True), target)
               for tone, target in zip(toned, targets, strict=True)]
  if 'saturation' in chosen:
    pale, wanted = grayscale(planes), factors['saturation']
    if spec.colour == 'tensorflow':
      pale = jnp.maximum(jnp.maximum(*planes[:2]), planes[2])
      chroma = pale - jnp.minimum(jnp.minimum(*planes[:2]), planes[2])
      wanted = jnp.minimum(wanted, pale / jnp.where(chroma > 0, chroma, 1))
    factor = jnp.where(chosen['saturation'], wanted, factor)
    targets = [jnp.where(chosen['saturation'], pale, target) for target in targets]
  changed = [factor * plane + (1 - factor) * target for plane, target in zip(planes, targets, strict=True)]
  return tuple(jnp.clip(plane if shift is None else plane + shift, 0, 1) for plane in changed)


def adjust_hue(planes: Planes, turn: jax.Array) -> Planes:
  """Rotates the hue, keeping the HSV saturation and value.

  With hue h from 0 to 6, chroma c and value v, a channel is v - c * clip(min(k, 4 - k), 0, 1) with
  k = (n + h) mod 6 and n = 5, 3, 1 for red, green and blue.

  Args:
    planes: three planes, float32 [B, V, H, W], from 0 to 1.
    turn: float32 [B, V, 1, 1], in full turns, from -1 to 1.
  """
  red, green, blue = planes
  value = jnp.maximum(jnp.maximum(red, green), blue)
  chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
  scale = 1 / jnp.where(chroma > 0, chroma, 1)
  hue = jnp.where(value == red, (green - blue) * scale,
                  jnp.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale))
  hue += 6 * turn
  def channel(offset):
    k = (hue + offset) * (1 / 6)
    k = 6 * (k - jnp.floor(k))
    return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
  return channel(5), channel(3), channel(1)


def grayscale(planes: Planes) -> jax.Array:
  """Luma of red, green and blue."""
  red, green, blue = planes
  return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def gaussian(sigma: jax.Array, radius: int) -> jax.Array:
  """Weights of Gaussian kernels at distances 0 to `radius`; each full kernel sums to 1.

  Args:
    sigma: float32 [B, V, 1, 1], in pixels; 0 gives the identity kernel.
    radius: largest distance.

  Returns:
    float32 [B, V, 1, radius + 1].
  """
  chex.assert_shape(sigma, (None, None, 1, 1))
  distance = jnp.arange(radius + 1, dtype=jnp.float32).reshape(1, 1, 1, -1)
  weights = jnp.exp(-0.5 * (distance / jnp.maximum(sigma, 1e-3))**2)
  return weights / (2 * jnp.sum(weights, -1, keepdims=True) - weights[..., :1])


def blur(plane: jax.Array, weights: jax.Array) -> jax.Array:
  """Blurs the rows, then the columns, with reflected borders (torchvision's 'reflect').

  Args:
    plane: float32 [B, V, H, W].
    weights: float32 [B, V, 1, radius + 1], half of a symmetric kernel.
  """
  chex.assert_rank([plane, weights], 4)
  radius = weights.shape[-1] - 1
  for axis in (-1, -2):
    pads = [(0, 0)] * plane.ndim
    pads[axis] = (radius, radius)
    padded = jnp.pad(plane, pads, mode='reflect')
    side = plane.shape[axis]
    take = lambda start, padded=padded, axis=axis, side=side: jax.lax.slice_in_dim(
        padded, start, start + side, axis=axis)
    plane = weights[..., :1] * take(radius)
    for distance in range(1, radius + 1):
      plane += weights[..., distance, None] * (take(radius - distance) + take(radius + distance))
  return plane
