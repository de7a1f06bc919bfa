"""JPEG whose headers were changed: size and pixels agree with Pillow, or both refuse the file."""
import io
import random

import numpy as np
import PIL.Image
import pytest
from samples import encode, smooth

from conic_jax.data import decode

RGB = smooth()
EXIF = PIL.Image.Exif()
EXIF[0x112] = 6
WHOLE = {
  'baseline': encode(RGB, 'JPEG', quality=90), 'progressive': encode(RGB, 'JPEG', progressive=True),
  'grey': encode(RGB[..., 0], 'JPEG'), 'CMYK': encode(PIL.Image.fromarray(RGB).convert('CMYK'), 'JPEG'),
  'EXIF and comment': encode(RGB, 'JPEG', exif=EXIF, comment=b'\xff\xd9\xff\xc0'),
  'ICC profile': encode(RGB, 'JPEG', icc_profile=bytes(300), optimize=True)}
STRAY = [b'\xff', b'\0', b'\x01\x02\x03', b'\xff\0', b'\xff\xff', b'\xff\xd0', b'\xff\xd7', b'\xff\xd8',
         b'\xff\xd9', b'\xff\x01', b'\xff\xfe\0\0', b'\xff\xfe\0\x02', b'\xff\xe5\0\x04\xff\xc0']


def segments(data):
  """(start, length) of the segments up to the first scan."""
  at, found = 2, []
  while not found or data[found[-1][0] + 1] != 0xda:
    found.append((at, int.from_bytes(data[at + 2:at + 4], 'big')))
    at += 2 + found[-1][1]
  return found


def with_length(data, at, length):
  return data[:at + 2] + length.to_bytes(2, 'big') + data[at + 4:]


def changed(data, rng):
  """The file with one change to one segment of its header."""
  at, length = rng.choice(segments(data))
  end = at + 2 + length
  change = rng.randrange(7)
  if change == 0:
    return with_length(data, at, rng.choice([0, 1, 2, 3, length - 1, length + 1, length + 2, 65535]))
  if change == 1:
    return data[:at + 1] + bytes([rng.randrange(256)]) + data[at + 2:]
  if change == 2:
    return data[:at] + rng.choice(STRAY) + data[at:]
  if change == 3:
    place = rng.randrange(at + 4, end)
    return data[:place] + bytes([rng.randrange(256)]) + data[place + 1:]
  if change == 4:
    return data[:at] + data[end:]
  if change == 5:
    return data[:end] + data[at:end] + data[end:]
  return data[:at] + bytes([rng.randrange(256)]) + data[at + 1:]


def by_pillow(data):
  try:
    with PIL.Image.open(io.BytesIO(data)) as image:
      return np.asarray(image.convert('RGB'))
  except Exception:
    return None


def agrees_with_pillow(data):
  """Whether Pillow decodes the file; if so, size and pixels must be the same, if not, both must refuse it."""
  expected, image = by_pillow(data), decode.decode(data)
  if expected is None:
    assert image is None
    return False
  assert decode.prepare(data)[1:] == expected.shape[:2]
  assert image.shape == expected.shape
  assert np.abs(image.astype(int) - expected).max() <= 12
  return True


@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
@pytest.mark.parametrize('name', WHOLE)
def test_changed_headers(name):
  rng = random.Random(name)
  decodable = [agrees_with_pillow(changed(WHOLE[name], rng)) for _ in range(150)]
  assert 20 < sum(decodable) < 130


@pytest.mark.parametrize('name', WHOLE)
def test_what_others_write_into_headers(name):
  data = WHOLE[name]
  for at, _ in segments(data)[1:]:
    for stray in (b'\xff\xd0', b'\xff\xff', b'\x01\x02', b'\xff\xfe\0\0', b'\xff\xfe\0\x01'):
      assert agrees_with_pillow(data[:at] + stray + data[at:]), (at, stray)
