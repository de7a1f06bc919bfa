"""The picture of the views: the training's own batch, and cells that are the same part of the image."""
import io
import itertools
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from support import flags_of, tiny_method

from conic_jax import methods, preview
from conic_jax.data import augment, sources
from conic_jax.hardware import mesh as meshes
from conic_jax.views import evaluated

# No colours are changed, so that a pixel tells where it lies, and little is compiled.
PLAIN = {'views.jitter': 0., 'views.grayscale': 0., 'views.blur': 0.}
SIDES = 120, 200


@pytest.fixture
def command(monkeypatch, figures):
  """Runs the command and gives the figures that it wrote."""
  def run(*arguments):
    monkeypatch.setattr(sys, 'argv', ['preview', *arguments])
    preview.command()
    return figures
  return run


def opened(config):
  source = sources.open_source(config.data, config.data.train)
  mesh = meshes.make_mesh(devices=jax.devices()[:1])
  return source, methods.make(config, source.num_images, mesh, meshes.compute_dtype('float32'))


def shown(axis):
  """The numbers written on a panel: number -> (x, y)."""
  return {int(text.get_text()): text.get_position() for text in axis.texts}


def test_cells_under_flips_by_hand():
  crop = np.float32([[[0, 0, 0.6, 0.8], [0.3, 0.2, 0.9, 1]]] * 2)
  flip = np.array([[False, False], [True, False]])
  plain, mirrored = np.moveaxis(preview.view_cells(crop, flip, 2), 1, 0)
  # The crops share y 0.3 … 0.6 and x 0.2 … 0.8, of the first view y ½ … 1 and x ¼ … 1.
  np.testing.assert_allclose(plain[0], [[[0.5, 0.25, 0.75, 0.625], [0.5, 0.625, 0.75, 1]],
                                        [[0.75, 0.25, 1, 0.625], [0.75, 0.625, 1, 1]]], atol=1e-6)
  np.testing.assert_allclose(mirrored[0], [[[0.5, 0.375, 0.75, 0.75], [0.5, 0, 0.75, 0.375]],
                                           [[0.75, 0.375, 1, 0.75], [0.75, 0, 1, 0.375]]], atol=1e-6)
  np.testing.assert_allclose(plain[1], [[[0, 0, 0.25, 0.375], [0, 0.375, 0.25, 0.75]],
                                        [[0.25, 0, 0.5, 0.375], [0.25, 0.375, 0.5, 0.75]]], atol=1e-6)
  np.testing.assert_array_equal(mirrored[1], plain[1])
  np.testing.assert_allclose(preview.image_cells(crop, 2)[0],
                             [[[0.3, 0.2, 0.45, 0.5], [0.3, 0.5, 0.45, 0.8]],
                              [[0.45, 0.2, 0.6, 0.5], [0.45, 0.5, 0.6, 0.8]]], atol=1e-6)


@pytest.mark.parametrize('spec', [evaluated({}), evaluated({'mean': (0., 0., 0.), 'std': (1., 1., 1.)})])
def test_normalisation_is_undone(spec):
  images = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
  np.testing.assert_array_equal(preview.pixels(augment.normalise(images, spec), spec), images)


def test_an_image_that_cannot_be_decoded_is_black_as_its_views_are():
  np.testing.assert_array_equal(preview.decoded(b'words'), np.zeros((1, 1, 3)))


def test_16_bits_are_shown_as_training_sees_them():
  encoded = io.BytesIO()
  Image.fromarray(np.full((4, 5), 90 * 256, np.uint16)).save(encoded, 'PNG')
  np.testing.assert_array_equal(preview.decoded(encoded.getvalue()), np.full((4, 5, 3), 90))


@pytest.fixture(scope='module')
def ramps(tmp_path_factory):
  """Images whose red grows with the row, and green with the column."""
  root = tmp_path_factory.mktemp('ramps')
  y, x = np.mgrid[:SIDES[0], :SIDES[1]]
  for index in range(16):
    Image.fromarray(np.stack([y, x, 0 * x], -1).astype(np.uint8)).save(root / f'{index:02d}.png')
  return root


@pytest.mark.slow
def test_cells_and_mosaics_of_the_training_batch_show_the_same_part_of_the_image(tiny_config, ramps):
  config = tiny_method(tiny_config, 'inscon', **PLAIN, **{'views.size': 64})
  config.data.dir, config.data.train = str(ramps), ''
  source, method = opened(config)
  batch = preview.first_batch(config, source, method, 16)
  image, *views = preview.columns(source, method, batch)
  assert {tuple(pair) for pair in np.asarray(batch['flip'][:, :2])} == set(
    itertools.product([False, True], repeat=2))
  middles = [(column.cells[..., :2] + column.cells[..., 2:]) / 2 for column in (image, *views[:2])]
  there = middles[0] * SIDES - 0.5
  for row, (column, middle) in itertools.product(range(16), zip(views, middles[1:], strict=False)):
    y, x = np.moveaxis(np.clip((64 * middle[row]).astype(int), 0, 63), -1, 0)
    pitch = np.ptp(batch['crop'][row, :2].reshape(-1, 2, 2), axis=1).max(axis=0) * SIDES / 64
    np.testing.assert_array_less(np.abs(column.images[row][y, x][..., :2] - there[row]),
                                 np.broadcast_to(pitch + 1, (3, 3, 2)))

  mosaics = preview.drawn_mosaics(method, batch)
  quadrants = [mosaics[2][:32, :32], mosaics[2][:32, 32:], mosaics[2][32:, :32], mosaics[2][32:, 32:]]
  np.testing.assert_array_equal(quadrants, views[2].images[8:12])
  assert views[2].cells is None
  fewer = preview.first_batch(config, source, method, 5)
  np.testing.assert_array_equal(fewer['views'][0], batch['views'][0][:5])
  assert len(preview.drawn_mosaics(method, fewer)) == 1
  assert preview.drawn_mosaics(method, {'views': [views[:3] for views in batch['views']]}) is None


@pytest.mark.slow
def test_the_command_draws_cells_and_mosaics_of_inscon(command, tiny_config, tmp_path):
  config = tiny_method(tiny_config, 'inscon', **PLAIN)
  out = tmp_path / 'pictures' / 'views.png'
  figure, = command(*flags_of(config), f'--out={out}', '--images=4')
  axes = np.array(figure.axes).reshape(-1, 4)
  assert len(axes) == 5
  source, method = opened(config)
  batch = preview.first_batch(config, source, method, 4)
  for row, (flips, panels) in enumerate(zip(batch['flip'], axes[:4], strict=True)):
    assert panels[0].get_ylabel() == str(row + 1)
    assert len(panels[0].patches) == 9 + 3
    for mirrored, panel in zip([False, *flips[:2]], panels, strict=False):
      at = shown(panel)
      assert set(at) == set(range(1, 10))
      assert (at[3][0] < at[1][0]) == mirrored
      assert at[1][1] < at[7][1]
    assert not panels[3].texts
  assert [set(shown(panel)) for panel in axes[4]] == [set(), {1, 2, 3, 4}, set(), set()]
  with Image.open(out) as picture:
    assert len(np.unique(np.asarray(picture.convert('L')))) > 2


@pytest.mark.slow
def test_the_command_draws_any_method(command, tiny_config, tmp_path):
  out = tmp_path / 'views.png'
  figure, = command(*flags_of(tiny_config), f'--out={out}', '--images=2')
  axes = np.array(figure.axes).reshape(2, 3)
  assert [axis.get_title() for axis in axes[0]] == ['image', 'view 1 (16×16)', 'view 2 (16×16)']
  assert not any(axis.texts for axis in axes.ravel())
  source, method = opened(tiny_config)
  batch = preview.first_batch(tiny_config, source, method, 2)
  for axis, crop, frame in zip(axes[1, 0].patches, batch['crop'][1], axes[1, 1:], strict=True):
    np.testing.assert_allclose(axis.get_bbox().extents, 16 * crop[np.array([1, 0, 3, 2])] - 0.5, rtol=1e-5)
    assert axis.get_edgecolor() == frame.spines['top'].get_edgecolor()
  assert out.exists()


@pytest.mark.parametrize(('arguments', 'answer'), [
  (['--config=configs/conic.py', '--images=0'], r'--images=0: from 1 to all 512'),
  (['--config=configs/conic.py', '--images=513'], r'--images=513'),
  (['--config=configs/conic.py', '--out=views.jpg'], r'--out=views\.jpg: .* ends in \.png'),
  (['--config=configs/knn.py'], r"config\.task is 'knn'"),
  (['--config=configs/conic.py', '--image=3'], r'no flag --image; .*--images, --out'),
])
def test_a_mistake_is_answered_in_one_line(command, arguments, answer):
  with pytest.raises(SystemExit, match=answer) as exit:
    command(*arguments)
  assert str(exit.value).startswith('conic_jax: ')
  assert len(str(exit.value).splitlines()) == 1


def test_a_picture_that_cannot_be_written_is_told(command, tiny_config, tmp_path):
  tiny_config.update_from_flattened_dict(PLAIN)
  (tmp_path / 'file').touch()
  with pytest.raises(SystemExit, match=r'file/views\.png cannot be written'):
    command(*flags_of(tiny_config), f'--out={tmp_path}/file/views.png', '--images=1')
