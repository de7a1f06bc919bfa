"""The augmentation refuses shapes that it does not promise to take."""
import pytest
from support import refuses, views_of

from conic_jax.data import augment


@pytest.mark.parametrize(('function', 'shapes'), [
  (lambda *arrays: augment.augment(*arrays, views_of()), [(4, 2, 8, 8, 1), (4, 2), (4, 2)]),
  (lambda *arrays: augment.augment(*arrays, views_of()), [(4, 2, 8, 8, 3), (4, 1), (4, 2)]),
  (lambda images: augment.normalise(images, views_of()), [(4, 8, 8, 4)]),
  (lambda sigma: augment.gaussian(sigma, 2), [(4, 2)]),
  (augment.blur, [(4, 8, 8), (4, 1, 1, 3)]),
])
def test_wrong_shapes(function, shapes):
  refuses(function, *shapes)
