"""Label-free measures against plain float64 formulas, and on features that hold nothing."""
import doctest

import hypothesis.extra.numpy as arrays
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from conic_jax import losses, measures

RNG = np.random.default_rng(0)


def entropy_rank(weights):
  shares = np.array([weight / sum(weights) for weight in weights])
  return np.exp(-sum(share * np.log(share) for share in shares if share > 1e-12))


def by_definition(views, ridge=1e-4):
  """LiDAR by the matrices themselves."""
  views = views / np.sqrt(np.mean((views - views.mean(axis=(0, 1))) ** 2))
  images, count, dim = views.shape
  mean = views.mean(axis=(0, 1))
  between, within = np.zeros((dim, dim)), ridge * np.eye(dim)
  for image in views:
    between += np.outer(image.mean(0) - mean, image.mean(0) - mean) / images
    for view in image:
      within += np.outer(view - image.mean(0), view - image.mean(0)) / (images * count)
  root = np.linalg.inv(scipy.linalg.sqrtm(within).real)
  return entropy_rank(np.maximum(np.linalg.eigvalsh(root @ between @ root), 0))


@pytest.mark.parametrize('shape', [(30, 7), (7, 30), (12, 12)])
def test_rankme_is_the_entropy_of_the_singular_values(shape):
  features = RNG.normal(size=shape) * np.linspace(0.1, 3, shape[1]) + 2
  expected = entropy_rank(np.linalg.svd(features, compute_uv=False))
  assert measures.rankme(features) == pytest.approx(expected, rel=1e-6)
  assert measures.rankme(features * 1e-30) == pytest.approx(expected, rel=1e-6)


def test_rankme_of_known_spectra():
  assert measures.rankme(np.eye(5)) == pytest.approx(5)
  assert measures.rankme(np.ones((9, 4))) == pytest.approx(1)
  low = RNG.normal(size=(50, 3)) @ RNG.normal(size=(3, 40))
  assert 1 < measures.rankme(low) <= 3 + 1e-9


def test_retrieval_counts_both_directions():
  first, second = RNG.normal(size=(40, 5)), RNG.normal(size=(40, 5))
  second[:30] = first[:30] + 0.3 * second[:30]
  cosine = lambda x, y: x @ y / np.sqrt(x @ x * (y @ y))
  hits = [np.argmax([cosine(a[n], y) for y in b]) == n for a, b in ((first, second), (second, first))
          for n in range(40)]
  assert measures.retrieval(first, second) == pytest.approx(np.mean(hits))
  assert 0.2 < np.mean(hits) < 0.9
  assert measures.retrieval(first, 7 * first) == 1


def test_twins_are_not_told_apart():
  first = np.repeat(RNG.normal(size=(5, 3)), 2, axis=0)
  assert measures.retrieval(first, first) == 0
  assert measures.retrieval(first[::2], first[::2]) == 1


def test_spread_is_that_of_the_losses():
  features = RNG.normal(size=(64, 9)) + 1
  expected = losses.feature_std(jnp.asarray(features), jnp.ones(64, bool))
  assert measures.spread(features) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize('shape', [(20, 4, 6), (6, 4, 20), (6, 4, 60), (9, 2, 9)])
def test_lidar_is_the_rank_of_the_discriminant_matrix(shape):
  views = RNG.normal(size=(shape[0], 1, shape[2])) + 0.5 * RNG.normal(size=shape) + 3
  assert measures.lidar(views) == pytest.approx(by_definition(views), rel=1e-5)


def test_lidar_leaves_out_what_views_change():
  """Two directions tell images apart; eight vary as much between the views of an image."""
  views = np.concatenate([np.repeat(RNG.normal(size=(300, 1, 2)), 4, axis=1),
                          RNG.normal(size=(300, 4, 8))], axis=2)
  assert measures.lidar(views) == pytest.approx(2, abs=0.1)
  assert measures.rankme(views[:, 0]) > 9


VALUES = st.floats(-2.**66, 2.**66, width=32, allow_subnormal=False) | st.sampled_from([0., 1., -1., 1e-30])


@settings(max_examples=100, deadline=None)
@given(arrays.arrays(np.float32, arrays.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5),
                     elements=VALUES), st.integers(1, 4))
def test_every_measure_is_finite_and_in_its_range(views, copies):
  views = np.repeat(views, copies, axis=0)
  images, _, dim = views.shape
  assert 1 <= measures.rankme(views[:, 0]) <= min(images, dim) + 1e-6
  assert 0 <= measures.retrieval(views[:, 0], views[:, -1]) <= 1
  assert 0 <= measures.spread(views[:, 0]) <= 1 + 1e-6
  assert 1 <= measures.lidar(views) <= max(1, min(images - 1, dim)) + 1e-6


@pytest.mark.parametrize('value', [0., 0.3, -1e12])
def test_a_single_point_has_one_dimension_and_no_images(value):
  views = np.full((50, 4, 16), value, np.float32)
  assert measures.rankme(views[:, 0]) == pytest.approx(1)
  assert measures.retrieval(views[:, 0], views[:, 1]) == 0
  assert measures.spread(views[:, 0]) == pytest.approx(0, abs=1e-6)
  assert measures.lidar(views) == 1


def test_examples():
  assert doctest.testmod(measures, extraglobs={'np': np}).failed == 0


@pytest.mark.parametrize(('measure', 'shapes'), [
  (measures.effective_rank, [(4, 1)]), (measures.rankme, [(4, 2, 3)]),
  (measures.retrieval, [(4, 3), (1, 3)]), (measures.spread, [(4,)]), (measures.lidar, [(4, 3)])])
def test_wrong_shapes(measure, shapes):
  with pytest.raises(AssertionError, match='Chex'):
    measure(*map(np.zeros, shapes))
