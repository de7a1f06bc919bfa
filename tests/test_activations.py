"""The picture of where encoders are active."""
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from conic_jax import activations, models
from conic_jax.evals.encoders import Encoder
from conic_jax.export import targets
from conic_jax.views import evaluated

VIEWS = evaluated({'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)})


@pytest.fixture(scope='module')
def encoder():
  """One stage of one block at half the resolution of 16×16 images."""
  network = models.ResNet(blocks=(1, 1), bottleneck=False, width=0.125, stem='cifar')
  variables = jax.jit(network.init)(jax.random.key(1), jnp.zeros((1, 16, 16, 3)))
  return Encoder('folder/own', network, variables, VIEWS, lambda variables, images: images, None)


@pytest.fixture(scope='module')
def weights(encoder, tmp_path_factory):
  """The encoder as a file of weights."""
  out = tmp_path_factory.mktemp('weights') / 'own.safetensors'
  targets.write('safetensors', encoder.network, encoder.variables, 'card', out)
  return out


@pytest.fixture
def command(monkeypatch):
  """Runs the command."""
  def run(*arguments):
    monkeypatch.setattr(sys, 'argv', ['activations', *map(str, arguments)])
    activations.command()
  return run


def test_the_map_of_a_response_by_hand():
  response = np.zeros((3, 2, 2, 4), np.float32)
  response[0, 0, 1], response[0, 1, 0] = 2, [8, 0, 0, 0]
  response[1] = 7
  response[2, 0], response[2, 1] = 1, 3
  maps = np.asarray(activations.scaled(response, 4))
  # Centres of the cells lie at ¼ and ¾: the outer pixels hold their values, the inner ones mix 3 to 1.
  near, far = np.array([1, 0.75, 0.25, 0]), np.array([0, 0.25, 0.75, 1])
  np.testing.assert_allclose(maps[0], near[:, None] * far + far[:, None] * near, rtol=1e-6)
  np.testing.assert_array_equal(maps[1], np.zeros((4, 4)))
  np.testing.assert_allclose(maps[2], far[:, None] + np.zeros(4), rtol=1e-6)


@pytest.mark.slow
def test_maps_are_of_the_last_stage_on_normalised_images(encoder):
  images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
  maps = activations.activation_maps(encoder, images)
  stages = encoder.network.apply(encoder.variables, jnp.asarray(images / 127.5 - 1, jnp.float32), stages=True)
  assert stages['stage2'].shape == (2, 8, 8, 16)
  np.testing.assert_allclose(maps, activations.scaled(stages['stage2'], 16), atol=1e-4)
  assert maps.min() == 0
  np.testing.assert_allclose(maps.max((1, 2)), 1)


def test_the_command_draws_two_encoders_and_leaves_out_what_cannot_be_decoded(
    command, weights, figures, image_folder, tmp_path, capsys):
  folder, out = tmp_path / 'images', tmp_path / 'new' / 'maps.png'
  folder.mkdir()
  for index, path in enumerate(sorted((image_folder / 'train' / 'checks').iterdir())[:7]):
    (folder / f'{index}.png').write_bytes(path.read_bytes() if index != 3 else b'no image')
  command(weights, 'random', f'--images={folder}', '--count=3', '--size=16', f'--out={out}')
  figure, = figures
  axes = np.reshape(figure.axes[:-1], (2, 3))
  assert [axis.get_title() for axis in axes[0]] == ['image', 'own.safetensors', 'random']
  for row, index in enumerate((0, 6)):
    with Image.open(folder / f'{index}.png') as image:
      np.testing.assert_array_equal(axes[row, 0].images[0].get_array(), np.asarray(image))
    own, random = (np.asarray(axis.images[0].get_array()) for axis in axes[row, 1:])
    assert np.abs(own.astype(int) - random).max() > 20
  said = capsys.readouterr().out
  assert f'1 images could not be decoded and were left out: {folder}/3.png' in said
  assert f'{out}: own.safetensors and random over 2 images' in said
  with Image.open(out) as picture:
    assert len(np.unique(np.asarray(picture.convert('L')))) > 2


def test_one_encoder_twice_over_an_older_picture(
    command, weights, figures, image_folder, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'maps.png').write_text('older')
  command(weights, weights, f'--images={image_folder}', '--count=1', '--size=16')
  axes = figures[0].axes[:3]
  assert [axis.get_title() for axis in axes] == ['image', weights.name, weights.name]
  images = [np.asarray(axis.images[0].get_array()) for axis in axes]
  np.testing.assert_array_equal(images[1], images[2])
  assert (images[0] != images[1]).any()
  with Image.open('maps.png') as picture:
    assert picture.size[0] > 100


@pytest.mark.parametrize(('arguments', 'answer'), [
  (['{own}'], 'arguments are required: --images'),
  (['{own}', '--images={folder}', '--out=maps.jpg'], r'--out=maps\.jpg: .* ends in \.png'),
  (['{own}', '--images={folder}', '--out=ftp://bucket/maps.png'],
   r"--out: 'ftp://bucket/maps\.png' is neither"),
  (['{own}', '{own}', '{own}', '--images={folder}'], 'One encoder or two'),
  (['{own}', '--images={folder}', '--count=0'], '--count from 1 to 50'),
  (['{own}', '--images={folder}', '--count=51'], '--count from 1 to 50'),
  (['{own}', '--images={folder}', '--size=0'], '--size of at least 1'),
  (['random', 'random', '--images={folder}'], 'network of another one'),
  (['nothing', '--images={folder}'], "There is no encoder 'nothing'"),
  (['', '--images={folder}'], "There is no encoder ''"),
  (['{own}', '--images={folder}/none'], 'none: there are no images below'),
  (['{own}', '--images={folder}/broken'], r'none of the images can be decoded: .*broken/0\.png'),
  (['{own}', '--images={folder}', '--size=16', '--out={folder}/file/maps.png'], 'cannot be written'),
])
def test_a_mistake_is_answered_in_one_line(command, weights, image_folder, tmp_path, arguments, answer):
  (tmp_path / 'broken').mkdir()
  (tmp_path / 'broken' / '0.png').write_bytes(b'no image')
  (tmp_path / 'good.png').write_bytes(next((image_folder / 'train' / 'checks').iterdir()).read_bytes())
  (tmp_path / 'file').touch()
  with pytest.raises(SystemExit, match=answer) as exit:
    command(*(argument.format(folder=tmp_path, own=weights) for argument in arguments))
  assert str(exit.value).startswith('conic_jax: ')
  assert len(str(exit.value).splitlines()) == 1
