"""Neighbours, clusters, outliers, copies and places of images, by hand."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conic_jax.explore import relations


def vectors(count, seed=0, width=5):
  return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_neighbours_are_those_of_a_full_sort(count, k, seed):
  features = vectors(count, seed)
  found, indices = relations.neighbours(features, k)
  units = features / np.linalg.norm(features, axis=1, keepdims=True)
  assert found.shape == indices.shape == (count, min(k, count - 1))
  for i in range(count):
    others = sorted((j for j in range(count) if j != i), key=lambda j: -units[i] @ units[j])[:k]
    assert i not in indices[i]
    np.testing.assert_allclose(found[i], [units[i] @ units[j] for j in others], atol=1e-6)
    np.testing.assert_allclose(found[i], units[i] @ units[indices[i]].T, atol=1e-6)


def test_neighbours_of_more_than_one_chunk(monkeypatch):
  features = vectors(50)
  whole = relations.neighbours(features, 4)
  monkeypatch.setattr(relations, '_CHUNK', 7)
  for one, other in zip(whole, relations.neighbours(features, 4), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize('mini', [False, True])
def test_clusters_of_three_directions(mini, monkeypatch):
  if mini:
    monkeypatch.setattr(relations, '_MINI_BATCH_FROM', 1)
  sizes = (30, 20, 10)
  directions = np.repeat(np.eye(3, 6, dtype=np.float32), sizes, axis=0) * np.arange(1, 61)[:, None]
  labels, medoids = relations.clusters(directions.astype(np.float32) + 0.01 * vectors(60, width=6), 3, 0)
  np.testing.assert_array_equal(labels, np.repeat((0, 1, 2), sizes))
  np.testing.assert_array_equal(labels[medoids], (0, 1, 2))


def test_a_medoid_is_the_image_nearest_to_the_centre():
  angles = np.array([-0.3, -0.2, 0.02, 0.3, 0.2])
  _, medoids = relations.clusters(np.stack([np.cos(angles), np.sin(angles)], axis=1), 1, 0)
  assert medoids.tolist() == [2]


def test_no_more_clusters_than_different_features():
  labels, medoids = relations.clusters(np.ones((9, 4), np.float32), 5, 0)
  assert (set(labels.tolist()), len(medoids)) == ({0}, 1)


@pytest.mark.parametrize(('images', 'count'), [(1, 1), (2, 2), (50, 5), (5000, 40)])
def test_usual_number_of_clusters(images, count):
  assert relations.usual_count(images) == count


def test_the_one_that_is_far_from_all_is_the_outlier():
  features = np.concatenate([np.ones((20, 5)) + 0.1 * vectors(20), -np.ones((1, 5))]).astype(np.float32)
  similarities, _ = relations.neighbours(features, 5)
  far = relations.outlyingness(similarities)
  assert far.argmax() == 20
  np.testing.assert_allclose(far, 1 - similarities.mean(axis=1))
  assert relations.outlyingness(np.zeros((1, 0), np.float32)).tolist() == [0]


def test_copies_are_told_by_the_thumbnails_mirrored_and_brighter_ones_too():
  rng = np.random.default_rng(0)
  first, other, flat = rng.uniform(0, 200, (3, 16, 16)).astype(np.float32)
  flat[:] = 100
  greys = np.stack([first, other, first[:, ::-1], 0.7 * first + 40, flat, flat])
  everyone = np.array([[j for j in range(6) if j != i] for i in range(6)])
  pairs, alike = relations.copies(everyone, greys)
  assert sorted(map(tuple, pairs.tolist())) == [(0, 2), (0, 3), (2, 3)]
  np.testing.assert_allclose(alike, 1, atol=1e-5)
  # Only neighbours are compared.
  pairs, _ = relations.copies(np.array([[1], [2], [1], [0], [5], [4]]), greys)
  assert pairs.tolist() == [[0, 3]]


def test_no_copies_of_a_single_image():
  pairs, alike = relations.copies(np.zeros((1, 0), np.int64), np.ones((1, 16, 16), np.float32))
  assert (pairs.shape, alike.shape) == ((0, 2), (0,))


def test_an_image_stands_among_the_landmarks_that_are_nearest():
  features = np.repeat(np.eye(2, 5, dtype=np.float32), 10, axis=0) + 0.01 * vectors(20)
  landmarks = np.array([0, 1, 2, 3, 10, 11, 12, 13])
  points = np.concatenate([np.zeros((4, 2)), np.full((4, 2), 100.0)]) + np.arange(8)[:, None]
  found = relations.placed(features, landmarks, points)
  np.testing.assert_array_equal(found[landmarks], points)
  assert found[:10].max() < 5
  assert found[10:].min() > 95
