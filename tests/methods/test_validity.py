"""What methods make of a batch's validity."""
import numpy as np
import pytest
from support import refuses

from conic_jax.methods import inscon, instance


def test_wrong_shapes():
  refuses(inscon.of_mosaics, (8, 1))
  refuses(lambda valid: instance.mean_weights(valid, 2), (8, 1))


@pytest.mark.parametrize(('valid', 'weights'), [
  ([True, False, True], [1 / 4, 1 / 4, 0, 0, 1 / 4, 1 / 4]), ([False, False], [0, 0, 0, 0])])
def test_the_views_of_valid_images_share_the_mean(valid, weights):
  np.testing.assert_array_equal(instance.mean_weights(np.array(valid), 2), np.float32(weights))
