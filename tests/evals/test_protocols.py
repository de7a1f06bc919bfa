"""The pictures of a run, of encoders and images of every kind."""
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from tiny import ArraySource, coloured, mean_colour

from conic_jax.command_line import load
from conic_jax.evals import protocols
from conic_jax.evals.features import FrozenEncoder, NotFinite


@pytest.fixture
def draw(tmp_path, mesh8):
  """Draws the pictures of a run; gives the names of those that were drawn, and what was said."""
  def execute(train, test=None, scale=1.0):
    (tmp_path / 'metrics.jsonl').write_text(json.dumps({'step': 1, 'epoch': 1.0, 'loss': 2.0}) + '\n')
    config = ConfigDict({'seed': 0, 'views': {**load('configs/conic.py').views, 'size': 8},
                         'eval': {'resize': 8, 'batch_size': 8}})
    said = []
    encoder = FrozenEncoder(mean_colour, {'scale': jnp.float32(scale)})
    protocols.draw(encoder, train, test, config, mesh8, tmp_path, said.append)
    drawn = sorted((tmp_path / 'figures').iterdir())
    for path in drawn:
      with Image.open(path) as picture:
        picture.load()
    return {path.name for path in drawn}, said
  return execute


def source(images, classes=3, **options):
  labels = np.arange(images) % classes
  return ArraySource(coloured(labels), labels, **options)


ALL = {'curves.png', 'features.png', 'neighbours.png'}


@pytest.mark.slow
@pytest.mark.parametrize(('train', 'test', 'scale'), [
  (source(20), None, 0.0), (source(3), None, 1.0), (source(20), source(1), 1.0),
  (source(1), source(2), 1.0), (source(12, classes=1), source(3, classes=1), 0.0)],
  ids=['no variance', 'three images', 'one to test', 'one to train', 'one class'])
def test_few_or_equal_images_are_drawn(draw, train, test, scale):
  drawn, said = draw(train, test, scale)
  assert drawn == ALL
  assert [line.partition(' ')[0] for line in said] == ['Pictures:']


@pytest.mark.slow
def test_features_that_are_no_numbers_cost_their_own_picture_alone(draw):
  drawn, said = draw(source(20), source(6), np.nan)
  assert drawn == ALL - {'features.png'}
  assert said[0] == 'Could not draw features.png (none of the features of 6 images is finite).'
  assert 'features.png' not in said[1]


@pytest.mark.slow
def test_an_image_alone_has_no_neighbours(draw):
  drawn, said = draw(source(1))
  assert drawn == ALL - {'neighbours.png'}
  assert said[0] == 'Could not draw neighbours.png (there are too few images to have neighbours).'


@pytest.mark.slow
def test_images_that_cannot_be_decoded_leave_the_curves(draw):
  drawn, said = draw(source(20, broken=range(19)))
  assert drawn == {'curves.png'}
  assert said[0].startswith('Could not draw features.png and neighbours.png (')
  assert 'cannot be decoded' in said[0]


@pytest.mark.slow
def test_a_run_of_a_thousand_classes_is_drawn(draw):
  assert draw(source(40, classes=4, num_classes=1000), source(24, num_classes=1000))[0] == ALL


@pytest.mark.slow
@pytest.mark.parametrize('scale', [np.nan, np.inf])
def test_features_that_are_no_numbers_have_no_accuracy(mesh8, scale):
  config = load('configs/conic.py:folder')
  config.views.size, config.eval.resize, config.eval.batch_size, config.eval.k = 8, 8, 8, (3,)
  config.linear.learning_rates, config.linear.epochs, config.linear.batch_size = (0.1,), 1, 8
  config.views.crop, config.eval.baselines, config.seed = (0.2, 1.0), False, 0
  config.linear.normalise, config.linear.schedule, config.linear.momentum = 'none', 'cosine', 0.9
  config.linear.milestones, config.linear.crop = (), (0.5, 1.0)
  encoder, images = FrozenEncoder(mean_colour, {'scale': jnp.float32(scale)}), (source(20), source(6))
  with pytest.raises(NotFinite, match='The features of 20 images are NaN or infinite: no accuracy'):
    protocols.knn(encoder, *images, config, mesh8)
  assert protocols.online_knn(encoder, *images, config, mesh8) == {}


def test_thumbnails_show_what_training_sees():
  def encoded(image, form='PNG'):
    data = io.BytesIO()
    image.save(data, form)
    return data.getvalue()

  grey = Image.fromarray(np.full((40, 90), 90 * 256, np.uint16))
  shown = protocols.thumbnails(Encoded([encoded(grey), encoded(grey, 'TIFF'), b'words']), np.arange(3))
  assert shown.shape == (3, 96, 96, 3)
  np.testing.assert_array_equal(shown[:, 0, 0, 0], [90, 90, 128])
  assert (shown == shown[:, :1, :1]).all()


class Encoded:
  """Encoded images."""

  def __init__(self, images):
    self._images = images

  def read(self, ids):
    return [self._images[i] for i in ids], np.full(len(ids), -1)
