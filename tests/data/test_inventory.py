"""What a run's images are: the first that differs is named."""
import gzip

import numpy as np
import pytest
from PIL import Image

from conic_jax.data import inventory, photos
from conic_jax.data.folder import Folder
from conic_jax.errors import UserError


@pytest.fixture
def images(tmp_path):
  """Six images in two folders."""
  for number in range(6):
    path = tmp_path / 'images' / 'ab'[number % 2] / f'{number}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(path)
  return tmp_path / 'images'


def rename(images):
  (images / 'a' / '2.png').rename(images / 'a' / '3.png')


def replace(images):
  (images / 'b' / '1.png').write_bytes(b'other')


def swap(images):
  (images / 'a' / '0.png').unlink()
  (images / 'b' / 'z.png').write_bytes(b'new')


def remove(images):
  (images / 'b' / '5.png').unlink()


def add(images):
  (images / 'b' / 'ä\n猫.png').write_bytes(b'new')


@pytest.mark.parametrize(('change', 'told'), [
  (rename, r"number 1 was 'a/2.png' \(\d+ bytes\) and is 'a/3.png' \(\d+ bytes\)\. Bring them back"),
  (replace, r"number 3 was 'b/1.png' \(\d+ bytes\) and is 'b/1.png' \(5 bytes\)"),
  (swap, r"number 0 was 'a/0.png' \(\d+ bytes\) and is 'a/2.png'"),
  (remove, r"number 5 was 'b/5.png' \(\d+ bytes\) and is none"),
  (add, r"number 6 was none and is 'b/ä\n猫.png' \(3 bytes\)")])
def test_the_first_difference_is_named(images, tmp_path, change, told):
  inventory.write(Folder(str(images), ''), tmp_path)
  assert inventory.check(Folder(str(images), ''), tmp_path) is None
  change(images)
  with pytest.raises(UserError, match=told):
    inventory.check(Folder(str(images), ''), tmp_path)


def test_the_folder_may_move(images, tmp_path):
  inventory.write(Folder(str(images), ''), tmp_path)
  images.rename(tmp_path / 'moved')
  assert inventory.check(Folder(str(tmp_path / 'moved'), ''), tmp_path) is None


@pytest.mark.parametrize('content', [
  b'', b'no gzip', gzip.compress(b'no json\n'), gzip.compress(b'[1]\n' * 99)[:-9]],
  ids=['empty', 'no gzip', 'no json', 'cut short'])  # The bytes differ between workers, by gzip's time.
def test_a_damaged_inventory_is_told(images, tmp_path, content):
  (tmp_path / inventory.FILE).write_bytes(content)
  try:
    told = inventory.check(Folder(str(images), ''), tmp_path)
  except UserError as error:
    told = str(error)
  assert told
  assert 'cannot be read' in told or 'number 0 was' in told


def test_a_source_without_an_inventory_is_not_checked(tmp_path):
  source = photos.Photos('train')
  inventory.write(source, tmp_path)
  assert not (tmp_path / inventory.FILE).exists()
  assert inventory.check(source, tmp_path) is None
