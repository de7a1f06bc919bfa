"""What is read off the images: their sizes, copies, strips, and when there is nothing to learn from."""
import io
import re

import numpy as np
import pytest
from PIL import Image

from conic_jax.errors import UserError
from conic_jax.recipe import look
from conic_jax.recipe.facts import copies_warning


class Images:
  """A source of arrays, as PNG."""
  num_classes, class_names = 0, ()

  def __init__(self, arrays):
    self.arrays, self.num_images = arrays, len(arrays)

  def read(self, ids):
    return [png(self.arrays[i]) for i in ids], np.full(len(ids), -1, np.int32)

  def name(self, id):
    return f'{id}.png'


def png(array):
  if array is None:
    return b'no image'
  file = io.BytesIO()
  Image.fromarray(array).save(file, 'PNG')
  return file.getvalue()


def noise(count, height=16, width=16, channels=3):
  rng = np.random.default_rng((count, height, width))
  blocks = rng.integers(0, 256, (count, 4, 4, channels), np.uint8)
  images = np.repeat(np.repeat(blocks, height // 4, axis=1), width // 4, axis=2)
  return list(images if channels == 3 else images[..., 0])


def facts_of(arrays):
  return look(Images(arrays), labelled=False, seed=0)


def test_sizes_are_medians():
  facts = facts_of(noise(60, 16, 16) + noise(40, 24, 96))
  assert (facts.num_images, facts.short_side, facts.aspect) == (100, 16, 1.0)
  assert facts.warnings == (
    '40% of the images are more than 3 times as long as wide: crops of these are mostly their middle. Cut '
    'them into squares to learn from all of them.',)
  facts = facts_of(noise(40, 16, 16) + noise(60, 96, 24))
  assert (facts.short_side, facts.aspect) == (24, 4.0)
  assert 'crops suit them, and are small parts of the others' in facts.warnings[0]


def test_strips_alone_are_no_warning_as_the_crops_suit_them():
  assert facts_of(noise(70, 16, 128)).warnings == ()


def test_grey_and_tiny_images_are_images():
  assert facts_of(noise(70, 8, 8, channels=1)).warnings == ()


def test_copies_are_counted():
  originals = noise(50)
  facts = facts_of(originals * 3)
  assert facts.warnings[0].startswith('Of 150 images that were looked at, 150 look like copies of others')
  assert 'about 2.0 copies in the folder' in facts.warnings[0]
  assert facts_of(noise(600)).warnings == ()


def test_copies_among_many_are_estimated_from_some():
  facts = facts_of(noise(700) * 3)
  count = float(re.search(r'about ([\d.]+) copies', facts.warnings[0])[1])
  assert 1 < count < 3


def test_a_few_pairs_that_are_alike_are_no_copies_of_all():
  thumbnails = np.random.default_rng(0).normal(128, 40, (512, 64))
  thumbnails[1] = thumbnails[0]
  assert copies_warning(thumbnails, 1_000_000) == ''


def test_copies_saved_again_are_copies():
  rng = np.random.default_rng(1)
  originals = noise(60, 64, 64)
  again = [np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8) for image in originals]
  assert 'about 1.0 copies' in facts_of(originals + again).warnings[0]


@pytest.mark.parametrize(('arrays', 'answer'), [
  (noise(63), r'There are 63 images: .*at least 64'),
  (noise(1) * 100, r'100 images that were looked at are copies of one'),
  ([None] * 70, r'None of the 70 images that were looked at can be decoded')])
def test_where_there_is_nothing_to_learn_from_it_is_told(arrays, answer):
  with pytest.raises(UserError, match=answer):
    facts_of(arrays)


def test_images_that_only_look_alike_are_warned_of():
  dark = [np.full((16, 16, 3), 3, np.uint8) + (np.arange(768).reshape(16, 16, 3) == i) for i in range(70)]
  assert '70 look like copies' in facts_of([image.astype(np.uint8) for image in dark]).warnings[0]


def test_a_damaged_image_that_pillow_has_its_own_word_for_is_passed_over():
  damaged = bytearray(png(noise(1)[0]))
  damaged[damaged.index(b'IDAT') + 2] ^= 0xff
  images = Images(noise(70))
  read = images.read
  images.read = lambda ids: ([bytes(damaged), *read(ids)[0][1:]], read(ids)[1])
  assert look(images, labelled=False, seed=0).num_images == 70


def test_broken_images_among_good_ones_are_passed_over():
  assert facts_of([*noise(70), None, None]).num_images == 72
