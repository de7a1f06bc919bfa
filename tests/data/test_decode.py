import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from samples import encode, smooth

from conic_jax.data import decode

RGB = smooth()
HEIGHT, WIDTH, _ = RGB.shape
GRAY = RGB[..., 0]
RGBA = np.concatenate([RGB, GRAY[..., None]], axis=-1)
SHADES = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 29


def decoded(data, boxes=((0, 0, HEIGHT, WIDTH),), sides=(32,), antialias_above=2.0,
            interpolation='bilinear'):
  """One view of a side for each box, and whether they are valid."""
  data, *_ = decode.prepare(data)
  views, valid = decode.decode_chunk(tf.constant([data]), tf.constant([boxes], tf.int32),
                                     tuple((1, side, interpolation) for side in sides), antialias_above)
  return [view.numpy()[0, 0] for view in views], bool(valid[0])


def whole(data):
  """The image without resizing, by a square box."""
  (view,), valid = decoded(data, ((0, 0, HEIGHT, HEIGHT),), (HEIGHT,))
  assert valid
  return view.astype(int)


def rgb(gray):
  return np.repeat(np.asarray(gray)[..., None], 3, axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize(('data', 'expected'), [
    (encode(RGB), RGB),
    (encode(GRAY), rgb(GRAY)),
    (encode(RGBA), RGB),
    (encode(PIL.Image.fromarray(RGBA).convert('LA')), rgb(PIL.Image.fromarray(RGB).convert('L'))),
    (encode(PIL.Image.fromarray(RGB).quantize(16)), PIL.Image.fromarray(RGB).quantize(16).convert(
        'RGB')),
    (encode(PIL.Image.fromarray(GRAY > 127)), rgb(255 * (GRAY > 127))),
    (encode(SHADES.astype(np.uint16)), rgb(SHADES / 257)),
    (encode(RGB, 'BMP'), RGB),
    (encode(RGB, 'WEBP', lossless=True), RGB),
    (encode(RGBA, 'WEBP', lossless=True, exact=True), RGB),
    (encode(PIL.Image.fromarray(RGB).quantize(64), 'GIF', save_all=True, append_images=[
        PIL.Image.fromarray(255 - RGB)]), PIL.Image.fromarray(RGB).quantize(64).convert('RGB')),
], ids=['RGB', 'gray', 'RGBA', 'LA', 'palette', '1 bit', '16 bits', 'BMP', 'WebP', 'WebP alpha',
        'GIF of two frames'])
def test_lossless_formats_keep_their_pixels(data, expected):
  assert decode.prepare(data)[1:] == (HEIGHT, WIDTH)
  assert np.abs(whole(data) - np.asarray(expected)[:, :HEIGHT]).max() <= 1


@pytest.mark.parametrize('data', [
    encode(RGB, 'JPEG', quality=98, subsampling=0),
    encode(RGB, 'JPEG', quality=98, progressive=True),
    encode(RGB, 'JPEG', quality=98, comment=b'\xff\xd9\xff\xc0'),
    encode(GRAY, 'JPEG', quality=98),
    encode(PIL.Image.fromarray(RGB).convert('CMYK'), 'JPEG', quality=98),
    encode(RGB, 'JPEG', quality=98) + b'trailing bytes'],
    ids=['baseline', 'progressive', 'comment', 'gray', 'CMYK', 'trailing bytes'])
def test_jpeg_agrees_with_pillow(data):
  assert decode.prepare(data)[1:] == (HEIGHT, WIDTH)
  expected = np.asarray(PIL.Image.open(io.BytesIO(data)).convert('RGB'))[:, :HEIGHT].astype(int)
  difference = np.abs(whole(data) - expected)
  assert difference.max() <= 8
  assert difference.mean() < 1


def test_orientation_is_ignored():
  exif = PIL.Image.Exif()
  exif[0x112] = 6
  np.testing.assert_array_equal(whole(encode(RGB, 'JPEG', exif=exif)), whole(encode(RGB, 'JPEG')))


@pytest.mark.parametrize('form', ['PNG', 'JPEG'])
@pytest.mark.parametrize('sides', [(24, 24), (24, 24, 40)], ids=['part decoded', 'all decoded'])
def test_views_are_the_pixels_of_their_boxes(form, sides):
  data = encode(smooth(64, 90), form)
  image = tf.io.decode_png(data) if form == 'PNG' else tf.io.decode_jpeg(
      data, dct_method='INTEGER_ACCURATE')
  boxes = [(3, 5, 40, 30), (20, 40, 41, 50), (0, 0, 64, 90)][:len(sides)]
  views, valid = decoded(data, boxes, sides)
  assert valid
  for view, (y, x, height, width) in zip(views, boxes, strict=True):
    crop = image[y:y + height, x:x + width]
    antialias = max(height, width) > 2 * view.shape[0]
    expected = tf.image.resize(crop, view.shape[:2], antialias=antialias)
    assert np.abs(view - expected).max() <= 0.51


def test_shrinking_is_antialiased_as_pillow_does():
  noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3), np.uint8)
  (view,), _ = decoded(encode(noise), ((0, 0, 120, 120),), (30,), antialias_above=1.0)
  expected = PIL.Image.fromarray(noise).resize((30, 30), PIL.Image.Resampling.BILINEAR)
  assert np.abs(view - np.asarray(expected, int)).max() <= 1
  (aliased,), _ = decoded(encode(noise), ((0, 0, 120, 120),), (30,), antialias_above=9.0)
  assert np.abs(aliased - np.asarray(expected, int)).max() > 20


def keys_cubic(image, size):
  """Bicubic in float64: Keys' kernel with a = -1/2 at half-pixel centres, renormalised at the border."""
  for axis in (0, 1):
    length = image.shape[axis]
    centres = (np.arange(size) + 0.5) * length / size - 0.5
    taps = np.floor(centres).astype(int)[:, None] + np.arange(-1, 3)
    t = np.abs(centres[:, None] - taps)
    kernel = np.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2)
    kernel *= (taps >= 0) & (taps < length)
    matrix = np.zeros((size, length))
    np.add.at(matrix, (np.arange(size)[:, None], np.clip(taps, 0, length - 1)), kernel)
    image = np.moveaxis(np.tensordot(matrix / matrix.sum(1, keepdims=True), image, (1, axis)), 0, axis)
  return image


@pytest.mark.parametrize('side', [30, 100, 200])
def test_bicubic_is_tensorflows_without_antialiasing(side):
  noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3), np.uint8)
  (view,), _ = decoded(encode(noise), ((5, 7, 100, 110),), (side,), interpolation='bicubic')
  crop = noise[5:105, 7:117]
  expected = tf.image.resize(crop, (side, side), 'bicubic').numpy()
  assert expected.max() > 255 or side == 30
  np.testing.assert_allclose(view, np.clip(expected, 0, 255), atol=0.51)
  # TensorFlow rounds its kernel to 1/1024.
  np.testing.assert_allclose(view, np.clip(keys_cubic(np.float64(crop), side), 0, 255), atol=2)


@pytest.mark.parametrize('side', [150, 300])
def test_bicubic_enlarges_as_pillow_does(side):
  smooth_image = smooth(100, 100)
  (view,), _ = decoded(encode(smooth_image), ((0, 0, 100, 100),), (side,), interpolation='bicubic')
  expected = PIL.Image.fromarray(smooth_image).resize((side, side), PIL.Image.Resampling.BICUBIC)
  assert np.abs(view - np.asarray(expected, int)).max() <= 1


def corrupt(data):
  """Random bytes in the middle."""
  middle = np.random.default_rng(0).integers(0, 256, len(data) // 2, np.uint8).tobytes()
  return data[:len(data) // 4] + middle + data[-len(data) // 4:]


JPEG, PNG, WEBP = (encode(RGB, form) for form in ('JPEG', 'PNG', 'WEBP'))
BROKEN = {
    'empty': b'', 'text': b'no image, only words', 'JPEG truncated': JPEG[:-len(JPEG) // 8],
    'JPEG header': JPEG[:60], 'JPEG start': JPEG[:3], 'JPEG of nothing': JPEG[:20] + JPEG[-2:],
    'JPEG tables': JPEG[:30] + bytes(120) + JPEG[150:],
    'JPEG height 0': JPEG.replace(bytes([0, HEIGHT, 0, WIDTH]), bytes([0, 0, 0, WIDTH])),
    'PNG truncated': PNG[:-len(PNG) // 8], 'PNG signature': PNG[:8], 'PNG corrupt': corrupt(PNG),
    'WebP truncated': WEBP[:len(WEBP) // 2], 'GIF header': b'GIF89a'}


@pytest.mark.slow
@pytest.mark.parametrize('name', BROKEN)
def test_undecodable_images_keep_their_place_as_zeros(name):
  chunk = [JPEG, BROKEN[name], PNG]
  data, shapes = zip(*[(data, shape) for data, *shape in map(decode.prepare, chunk)])
  boxes = np.tile(np.array([[0, 0, HEIGHT, WIDTH], [0, 0, 9, 9]], np.int32), (3, 1, 1))
  (large, small), valid = decode.decode_chunk(tf.constant(list(data)), boxes,
                                              ((1, 32, 'bilinear'), (1, 8, 'bicubic')), 2.0)
  np.testing.assert_array_equal(valid, [True, False, True])
  for views in (large.numpy(), small.numpy()):
    assert not views[1].any()
    assert views[0].any()
    assert views[2].any()
    assert np.abs(views[0].astype(int) - views[2]).mean() < 4
  assert len(shapes) == 3


def test_a_chunk_without_any_image():
  (views,), valid = decode.decode_chunk(tf.constant([b'', b'']), np.ones((2, 1, 4), np.int32),
                                        ((1, 8, 'bilinear'),), 2.0)
  assert views.shape == (2, 1, 8, 8, 3)
  assert not views.numpy().any()
  assert not valid.numpy().any()


def pillows(gray16):
  """The 8-bit grey of 16-bit samples, as all roads must show it."""
  return rgb(gray16.astype(int) >> 8)


@pytest.mark.parametrize(('data', 'expected'), [
    (encode(SHADES.astype(np.uint16)), pillows(SHADES)),
    (encode(SHADES.astype(np.uint16), 'TIFF'), pillows(SHADES)),
    (encode(SHADES.astype(np.uint16), 'PPM'), pillows(SHADES)),
    (encode(RGBA), RGB), (encode(RGB, 'BMP'), RGB), (encode(RGB, 'WEBP', lossless=True), RGB),
    (encode(PIL.Image.fromarray(RGB).quantize(16)), np.asarray(PIL.Image.fromarray(RGB).quantize(16).convert(
      'RGB')))], ids=['16-bit PNG', '16-bit TIFF', '16-bit PGM', 'RGBA', 'BMP', 'WebP', 'palette'])
def test_a_whole_image_has_the_pixels_of_its_views(data, expected):
  image = decode.decode(data)
  assert np.abs(image.astype(int) - expected).max() <= 1
  np.testing.assert_array_equal(image[:, :HEIGHT], whole(data))


@pytest.mark.parametrize('name', BROKEN)
def test_what_has_no_views_is_no_whole_image_either(name):
  assert decode.decode(BROKEN[name]) is None


@pytest.mark.parametrize('dtype', [np.int32, np.float32])
def test_samples_of_unknown_range_count_as_undecodable(dtype):
  data = encode(PIL.Image.fromarray(SHADES.astype(dtype)), 'TIFF')
  assert decode.prepare(data) == (b'', 0, 0)
  assert decode.decode(data) is None


@pytest.mark.slow
def test_images_beyond_pillows_limit_are_decoded():
  side = 14_000  # 196 million pixels: Pillow refuses more than 179 million.
  image = decode.decode(encode(PIL.Image.new('1', (side, side), 1)))
  assert image.shape == (side, side, 3)
  assert image[::999, ::999].min() == 255


@pytest.mark.parametrize(('least_side', 'shape'), [
  (0, (64, 90)), (65, (64, 90)), (32, (32, 45)), (5, (8, 12))])
def test_a_large_jpeg_may_come_smaller(least_side, shape):
  image = smooth(64, 90)
  small = decode.decode(encode(image, 'JPEG', quality=98), least_side)
  assert small.shape == (*shape, 3)
  expected = PIL.Image.fromarray(image).resize(shape[::-1], PIL.Image.Resampling.BOX)
  assert np.abs(small.astype(int) - np.asarray(expected)).mean() < 6
