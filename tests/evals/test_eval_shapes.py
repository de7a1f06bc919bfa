"""Evaluations refuse shapes that they do not promise to take."""
import numpy as np
import pytest
from support import refuses

from conic_jax.evals import accuracy, features, svm


@pytest.mark.parametrize(('function', 'shapes'), [
  (accuracy.hits, [(8, 5), (8, 1), (8,)]),
  (accuracy.hits, [(8, 5), (8,), (1,)]),
  (lambda *arrays: accuracy.confusion(*arrays, 5), [(8,), (8,), (1,)]),
  (lambda images: features.pixels(None, images), [(16, 16, 3)]),
])
def test_wrong_shapes(function, shapes):
  refuses(function, *shapes)


def test_targets_of_one_class_need_an_axis():
  split = np.zeros((8, 3)), np.zeros(8)
  with pytest.raises(AssertionError, match='Chex'):
    svm.mean_average_precision(split, split, ['cat'], svm.SvmSettings((1.0,), 2, 10), print)
