import matplotlib
import numpy as np
import pytest
from pictures import check_picture, smooth

from conic_jax import visualise
from conic_jax.errors import UserError

HOSTILE = 'a$x_{$'  # What Matplotlib's mathematics cannot parse.


def shown(axis):
  return np.asarray(axis.images[0].get_array())


def test_masks_lie_over_the_images_and_void_stays(figures, tmp_path):
  images = [smooth()[:64], smooth()]
  truths = [np.zeros((64, 96), np.uint8), np.full((96, 96), 2, np.uint8)]
  truths[1][:8] = 255
  predictions = [truths[0], np.ones((96, 96), np.uint8)]
  visualise.segmentation_picture(images, truths, predictions, ['road', 'sky', HOSTILE], tmp_path / 's.png')
  axes = np.reshape(figures[0].axes, (2, 3))
  assert [axis.get_title() for axis in axes[0]] == ['image', 'truth', 'prediction']
  colours = 255 * np.array(matplotlib.colormaps['tab20'].colors)[[0, 2, 4]]
  for row, image, truth, prediction in zip(axes, images, truths, predictions, strict=True):
    np.testing.assert_array_equal(shown(row[0]), image)
    for axis, classes in zip(row[1:], (truth, prediction), strict=True):
      over = 0.4 * image + 0.6 * colours[np.minimum(classes, 2)]
      expected = np.where(classes[..., None] == 255, image, over)
      np.testing.assert_allclose(shown(axis), expected, atol=0.51)
  legend, = figures[0].legends
  assert [text.get_text() for text in legend.get_texts()] == ['road', 'sky', HOSTILE]
  check_picture(tmp_path / 's.png')


def test_of_many_classes_the_commonest_are_listed(figures, tmp_path):
  truth = np.repeat(np.arange(30, dtype=np.uint8), np.arange(30) + 1)[None]
  image = np.zeros((*truth.shape, 3), np.uint8)
  visualise.segmentation_picture([image], [truth], [truth], [str(label) for label in range(30)],
                                 tmp_path / 's.png')
  legend, = figures[0].legends
  assert [text.get_text() for text in legend.get_texts()] == [str(label) for label in range(6, 30)]


def test_images_of_any_shape_without_a_class_are_drawn(tmp_path):
  images = [np.zeros((3000, 1, 3), np.uint8), np.full((1, 3000, 3), 99, np.uint8)]
  void = [np.full(image.shape[:2], 255, np.uint8) for image in images]
  visualise.segmentation_picture(images, void, void, [], tmp_path / 's.png')
  check_picture(tmp_path / 's.png')


def test_no_image_is_refused(tmp_path):
  with pytest.raises(UserError, match='no images'):
    visualise.segmentation_picture([], [], [], ['road'], tmp_path / 's.png')
