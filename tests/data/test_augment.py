"""The augmentation on the device against float64 references."""
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import skimage.color
import tensorflow as tf
from support import views_of

from conic_jax.data import augment as augment_lib
from conic_jax.data.augment import augment, normalise, view_keys
from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.views import evaluated

NOTHING = views_of(size=12, jitter=0.0, grayscale=0.0, blur=0.0)
EVERYTHING = views_of(size=12, blur_kernel=0.4, solarise=0.5)
TENSORFLOW = dataclasses.replace(EVERYTHING, colour='tensorflow')
CHANGES = ('brightness', 'contrast', 'saturation', 'hue')


def spec(**changes):
  return dataclasses.replace(NOTHING, **changes)


def only(change, strength=1.0):
  return spec(jitter=1.0, **{name: 0.0 for name in CHANGES if name != change}, strength=strength)


def batch(images=6, views=2, side=12, seed=0):
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (images, views, side, side, 3), np.uint8)
  pixels[0, :, :4] = 0
  pixels[0, :, 4:8] = 255
  pixels[1, ..., 1] = pixels[1, ..., 0]
  flip = rng.random((images, views)) < 0.5
  return pixels, flip, keys_of(3, 1, np.arange(images), views)


run = jax.jit(augment, static_argnums=3)
keys_of = jax.jit(view_keys, static_argnums=3)


@functools.cache
def program(views):
  """The compiled augmentation of `batch`."""
  return run.lower(*batch(), views).compile().as_text()


def test_of_an_encoder_without_a_run_views_are_imagenets():
  """Fine-tuning crops by the aspect, as torchvision does."""
  views = evaluated({})
  assert (views.size, views.aspect) == (224, (3 / 4, 4 / 3))
  assert (views.mean, views.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@functools.partial(jax.jit, static_argnums=1)
def uniform(keys, count):
  return jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (count,))))(keys)


def draws_of(keys):
  values = uniform(keys, len(augment_lib.DRAWS))
  return dict(zip(augment_lib.DRAWS, np.moveaxis(np.float64(values), -1, 0), strict=True))


def luma(image):
  return image @ np.array([0.299, 0.587, 0.114])


def change(image, name, amount, views=NOTHING):
  """One colour change of a float64 image from 0 to 1."""
  if name == 'brightness' and views.additive_brightness:
    return np.clip(image + amount, 0, 1)
  if name == 'contrast' and views.colour == 'tensorflow':
    return np.clip(image.mean((0, 1)) + amount * (image - image.mean((0, 1))), 0, 1)
  if name == 'saturation' and views.colour == 'tensorflow':
    hsv = skimage.color.rgb2hsv(image)
    hsv[..., 1] = np.clip(hsv[..., 1] * amount, 0, 1)
    return skimage.color.hsv2rgb(hsv)
  if name == 'hue':
    hsv = skimage.color.rgb2hsv(image)
    hsv[..., 0] = (hsv[..., 0] + amount) % 1
    return skimage.color.hsv2rgb(hsv)
  target = {'brightness': 0.0, 'contrast': luma(image).mean(),
            'saturation': luma(image)[..., None]}[name]
  return np.clip(amount * image + (1 - amount) * target, 0, 1)


def amount(views, name, draw):
  reach = views.strength * getattr(views, name)
  added = name == 'hue' or (name == 'brightness' and views.additive_brightness)
  low, high = (-reach, reach) if added else (max(0, 1 - reach), 1 + reach)
  return low + (high - low) * draw


def gaussian_blur(image, sigma, radius):
  weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma)**2)
  weights /= weights.sum()
  for axis in (0, 1):
    image = scipy.ndimage.convolve1d(image, weights, axis, mode='mirror')
  return image


def reference(pixels, flip, keys, views):
  """The whole augmentation in float64, an image at a time."""
  draws, result = draws_of(keys), np.empty(pixels.shape)
  orders = list(itertools.permutations(CHANGES))
  for index in np.ndindex(flip.shape):
    draw = {name: values[index] for name, values in draws.items()}
    image = pixels[index][:, ::-1] if flip[index] else pixels[index]
    image = image / 255
    if draw['jitter'] < views.jitter:
      for name in orders[int(draw['order'] * len(orders))]:
        image = change(image, name, amount(views, name, draw[name]), views)
    if draw['grayscale'] < views.grayscale:
      image = np.repeat(luma(image)[..., None], 3, -1)
    if draw['blur'] < views.blur:
      low, high = views.blur_sigma
      image = gaussian_blur(image, low + (high - low) * draw['sigma'],
                            int(views.blur_kernel * image.shape[1] / 2))
    if draw['solarise'] < views.solarise:
      image = np.where(image < 0.5, image, 1 - image)
    result[index] = (image - views.mean) / views.std
  return result


@pytest.mark.slow
@pytest.mark.parametrize('name', CHANGES)
def test_each_change(name):
  pixels, flip, keys = batch()
  views = only(name)
  expected = [[(change((image[:, ::-1] if mirrored else image) / 255, name,
                       amount(views, name, draw)) - views.mean) / views.std
               for image, mirrored, draw in zip(*rows, strict=True)]
              for rows in zip(pixels, flip, draws_of(keys)[name], strict=True)]
  np.testing.assert_allclose(run(pixels, flip, keys, views), expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize('sigma', [0.1, 1.0, 3.0])
@pytest.mark.parametrize(('side', 'share', 'radius'), [(12, 0.1, 0), (12, 0.25, 1), (13, 0.5, 3)])
def test_blur(side, share, radius, sigma):
  pixels, flip, keys = batch(side=side)
  views = spec(blur=1.0, blur_kernel=share, blur_sigma=(sigma, sigma))
  actual = run(pixels, np.zeros_like(flip), keys, views)
  expected = [[(gaussian_blur(image / 255, sigma, radius) - views.mean) / views.std
               for image in images] for images in pixels]
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_grayscale():
  pixels, flip, keys = batch()
  views = spec(grayscale=1.0)
  actual = run(pixels, np.zeros_like(flip), keys, views) * np.float32(views.std).reshape(
      1, 1, 1, 1, 3) + np.float32(views.mean).reshape(1, 1, 1, 1, 3)
  np.testing.assert_allclose(actual, np.repeat(luma(pixels / 255)[..., None], 3, -1), atol=1e-6)


def test_solarise():
  pixels, flip, keys = batch()
  views = spec(solarise=1.0)
  inverted = np.where(pixels < 128, pixels, 255 - pixels) / 255
  actual = run(pixels, np.zeros_like(flip), keys, views)
  np.testing.assert_allclose(actual, (inverted - views.mean) / views.std, atol=1e-5)


def test_a_draw_at_the_end_moves_no_other():
  """A view drawn before there was solarisation is the same view now."""
  _, _, keys = batch()
  np.testing.assert_array_equal(np.stack(list(draws_of(keys).values())[:9], -1), uniform(keys, 9))


TF_CHANGES = {
  'brightness': lambda image, value: image * value, 'added brightness': tf.image.adjust_brightness,
  'contrast': tf.image.adjust_contrast, 'saturation': tf.image.adjust_saturation,
  'hue': tf.image.adjust_hue}


@pytest.mark.slow
@pytest.mark.parametrize('name', TF_CHANGES)
def test_each_change_is_tensorflows(name):
  pixels, flip, keys = batch()
  field = name.split()[-1]
  views = dataclasses.replace(only(field), colour='tensorflow', additive_brightness=name != field,
                              mean=(0, 0, 0), std=(1, 1, 1))
  actual = run(pixels, np.zeros_like(flip), keys, views)
  draws = draws_of(keys)[field]
  for index in np.ndindex(flip.shape):
    image = tf.constant(pixels[index] / 255, tf.float32)
    expected = TF_CHANGES[name](image, np.float32(amount(views, field, draws[index])))
    np.testing.assert_allclose(actual[index], np.clip(expected, 0, 1), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize('views', [
  EVERYTHING, TENSORFLOW, dataclasses.replace(TENSORFLOW, additive_brightness=True),
  dataclasses.replace(EVERYTHING, additive_brightness=True)],
  ids=['torchvision', 'tensorflow', 'tensorflow, added', 'torchvision, added'])
def test_whole_augmentation(views):
  pixels, flip, keys = batch(images=24)
  actual = run(pixels, flip, keys, views)
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, reference(pixels, flip, keys, views), atol=1e-4)


@pytest.mark.parametrize(('field', 'value', 'known'), [
  ('colour', 'opencv', 'torchvision, tensorflow'), ('interpolation', 'nearest', 'bilinear, bicubic')])
def test_a_setting_that_there_is_not_says_what_there_is(field, value, known):
  with pytest.raises(UserError, match=f"config.views.{field} is '{value}'; available: {known}"):
    views_of(**{field: value})


def test_every_order_comes_as_often():
  draws = draws_of(keys_of(0, 0, np.arange(2400), 1))
  counts = np.bincount(np.int32(draws['order'] * 24).ravel(), minlength=24)
  assert counts.size == 24
  assert np.all(np.abs(counts - 100) < 45)


@pytest.mark.slow
@pytest.mark.parametrize(('views', 'probability'), [
    (only('brightness'), 1.0), (dataclasses.replace(only('brightness'), jitter=0.8), 0.8),
    (dataclasses.replace(only('hue'), jitter=0.3), 0.3), (spec(grayscale=0.2), 0.2),
    (spec(blur=0.5, blur_kernel=0.5, blur_sigma=(1.0, 2.0)), 0.5), (spec(solarise=0.2), 0.2)])
def test_probabilities(views, probability):
  pixels = np.broadcast_to(batch(side=8)[0][-1, -1], (1000, 2, 8, 8, 3))
  flip = np.zeros((1000, 2), bool)
  result = run(pixels, flip, keys_of(0, 0, np.arange(1000), 2), views)
  changed = np.any(np.abs(result - normalise(pixels, views)) > 1e-4, axis=(2, 3, 4)).mean()
  assert changed == pytest.approx(probability, abs=0.04)


@pytest.mark.slow
@pytest.mark.parametrize('views', [
    NOTHING, only('brightness', strength=0.0), spec(jitter=1.0, brightness=0.0, contrast=0.0,
                                                    saturation=0.0, hue=0.0),
    spec(blur=1.0, blur_kernel=0.1)])
def test_what_has_no_effect_is_not_compiled(views):
  pixels, flip, keys = batch()
  expected = jax.jit(normalise, static_argnums=1)(pixels, views)
  np.testing.assert_array_equal(run(pixels, np.zeros_like(flip), keys, views), expected)
  np.testing.assert_array_equal(run(pixels, np.ones_like(flip), keys, views),
                                expected[..., ::-1, :])
  assert 'xor(' in program(EVERYTHING)
  assert 'xor(' not in program(views)


def test_the_defaults_are_simclrs():
  """Chen et al. 2020, Appendix A, at strength 1; mean and deviation as torchvision has them."""
  views = views_of()
  assert (views.flip, views.jitter, views.grayscale, views.blur) == (0.5, 0.8, 0.2, 0.5)
  assert (views.brightness, views.contrast, views.saturation, views.hue) == (0.8, 0.8, 0.8, 0.2)
  assert (views.blur_sigma, views.blur_kernel, views.aspect) == ((0.1, 2.0), 0.1, (3 / 4, 4 / 3))
  assert (views.count, views.size, views.overlap, views.solarise, views.strength) == (2, 224, 0, 0, 1)
  assert not views.additive_brightness
  assert (views.mean, views.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_normalise():
  pixels = batch()[0][0, 0]
  views = views_of(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
  np.testing.assert_allclose(normalise(pixels, views), (pixels / 255 - views.mean) / views.std,
                             atol=1e-6)


def test_keys_are_a_function_of_seed_epoch_image_and_view():
  ids = np.int32([7, 0, 2_000_000_000, 8])
  data = lambda *args: np.asarray(jax.random.key_data(keys_of(*args)))
  keys = data(5, 2, ids, 3)
  assert keys.shape[:2] == (4, 3)
  order = [2, 0]
  np.testing.assert_array_equal(data(5, jnp.int32(2), ids[order], 3), keys[order])
  np.testing.assert_array_equal(data(5, 2, ids, 2, 1), keys[:, 1:])
  others = [keys, data(6, 2, ids, 3), data(5, 3, ids, 3)]
  assert len(np.unique(np.concatenate(others).reshape(-1, keys.shape[-1]), axis=0)) == 36


def test_a_view_does_not_depend_on_its_batch():
  pixels, flip, keys = batch()
  whole = run(pixels, flip, keys, EVERYTHING)
  part = run(pixels[2:4, 1:], flip[2:4, 1:], keys_of(3, 1, np.arange(2, 4), 1, 1), EVERYTHING)
  np.testing.assert_allclose(part, whole[2:4, 1:], atol=1e-5)


@pytest.mark.slow
def test_split_batch_stays_where_it_lies(mesh8):
  pixels, flip, _ = batch(images=16)
  ids = np.arange(16, dtype=np.int32)

  @jax.jit
  def step(pixels, flip, ids):
    return augment(pixels, flip, view_keys(3, 1, ids, 2), EVERYTHING)
  sharding = meshes.batch_sharding(mesh8)
  split = jax.device_put((pixels, flip, ids), sharding)
  compiled = step.lower(*split).compile()
  text = compiled.as_text()
  assert 'num_partitions=8' in text
  for collective in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'):
    assert collective not in text
  actual = compiled(*split)
  assert actual.sharding.is_equivalent_to(sharding, actual.ndim)
  np.testing.assert_allclose(actual, step(pixels, flip, ids), atol=1e-5)
