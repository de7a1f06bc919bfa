import matplotlib
import numpy as np
import pytest
from pictures import check_picture, smooth

from conic_jax import visualise
from conic_jax.errors import UserError


def test_maps_lie_over_the_grey_images(figures, tmp_path):
  images = smooth(2)
  ramp = np.linspace(0, 1, 2 * 96 * 96, dtype=np.float32).reshape(2, 96, 96)
  maps = [np.zeros((2, 96, 96), np.float32), ramp]
  # The same title twice, one that is also the images', and one with mathematics that cannot be parsed.
  titles = ['image', 'a$x_{$', 'image']
  visualise.activations_picture(images, [*zip(titles, [*maps, maps[0]], strict=True)], tmp_path / 'maps.png')
  axes = np.reshape(figures[0].axes[:-1], (2, 4))
  assert [axis.get_title() for axis in axes[0]] == ['image', *titles]
  grey = (images @ [0.299, 0.587, 0.114])[..., None]
  for row in range(2):
    np.testing.assert_array_equal(axes[row, 0].images[0].get_array(), images[row])
    for column, values in enumerate([*maps, maps[0]], 1):
      heat = 255 * matplotlib.colormaps['inferno'](values[row])[..., :3]
      np.testing.assert_allclose(axes[row, column].images[0].get_array(), 0.65 * heat + 0.35 * grey[row],
                                 atol=0.51)
  check_picture(tmp_path / 'maps.png')


def test_maps_that_are_no_numbers_are_drawn_and_no_image_is_refused(tmp_path):
  maps = [('encoder', np.full((2, 96, 96), np.nan))]
  visualise.activations_picture(smooth(2), maps, tmp_path / 'maps.png')
  check_picture(tmp_path / 'maps.png')
  with pytest.raises(UserError, match='no images'):
    visualise.activations_picture(smooth(0), maps, tmp_path / 'maps.png')
