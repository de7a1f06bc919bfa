import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from tiny import on_mesh

from conic_jax.errors import UserError
from conic_jax.evals import knn
from conic_jax.evals.knn import knn_accuracy, neighbours
from conic_jax.hardware.mesh import make_mesh

CLASSES = 5


def draw(bank_size, num_queries, width, seed=0):
  """Features around one centre a class, so that neither every vote is right nor every one wrong."""
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(CLASSES, width))
  def some(count):
    labels = rng.integers(0, CLASSES, count)
    return (0.7 * centres[labels] + rng.normal(size=(count, width))).astype(np.float32), labels
  return *some(bank_size), *some(num_queries)


def reference(bank, bank_labels, queries, labels, k, temperature):
  """Accuracy, similarities and ids in float64; equal similarities in the order of ids."""
  bank, queries = (rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
                   for rows in (bank, queries))
  similarities = queries @ bank.T
  ids = np.argsort(-similarities, axis=1, kind='stable')[:, :k]
  similarities = np.take_along_axis(similarities, ids, axis=1)
  votes = np.zeros((len(queries), CLASSES))
  for row, (nearest, weights) in enumerate(zip(ids, np.exp(similarities / temperature))):
    np.add.at(votes[row], bank_labels[nearest], weights)
  return np.mean(votes.argmax(1) == labels), similarities, ids


@pytest.mark.slow
@pytest.mark.parametrize(('bank_size', 'num_queries', 'chunk'), [(333, 41, 10), (64, 300, 4096)])
def test_equals_the_reference(mesh, bank_size, num_queries, chunk):
  rows = draw(bank_size, num_queries, width=6)
  bank, queries = on_mesh(mesh, *rows[:2], extra=5), on_mesh(mesh, *rows[2:])
  accuracies = knn_accuracy(bank, queries, num_classes=CLASSES, ks=(1, 7, 20), temperature=0.1,
                            chunk=chunk, mesh=mesh)
  expected = {k: reference(*rows, k, 0.1)[0] for k in (1, 7, 20)}
  assert accuracies == pytest.approx(expected, abs=1e-9)
  assert len(set(expected.values())) == 3
  similarities, ids = neighbours(bank, queries, 20, mesh, chunk=chunk)
  np.testing.assert_array_equal(ids, reference(*rows, 20, 0.1)[2])
  np.testing.assert_allclose(similarities, reference(*rows, 20, 0.1)[1], atol=2e-6)


def test_equals_scikit_learn(mesh8):
  rows = draw(150, 60, width=5)
  theirs = KNeighborsClassifier(17, metric='cosine', weights=lambda distances: np.exp((1 - distances) / 0.07))
  theirs.fit(*rows[:2])
  accuracy = knn_accuracy(on_mesh(mesh8, *rows[:2]), on_mesh(mesh8, *rows[2:]), num_classes=CLASSES, ks=(17,),
                          mesh=mesh8)
  assert accuracy == pytest.approx({17: theirs.score(*rows[2:])})


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True)
@given(bank_size=st.integers(1, 60), num_queries=st.integers(1, 20), width=st.integers(2, 9),
       k=st.integers(1, 80), chunk=st.integers(1, 70), devices=st.sampled_from([1, 3, 8]))
def test_equals_the_reference_at_any_shape(bank_size, num_queries, width, k, chunk, devices):
  mesh = make_mesh(devices=jax.devices()[:devices])
  rows = draw(bank_size, num_queries, width, seed=bank_size)
  bank, queries = on_mesh(mesh, *rows[:2]), on_mesh(mesh, *rows[2:])
  accuracy, similarities, ids = reference(*rows, k, 0.07)
  found = neighbours(bank, queries, k, mesh, chunk=chunk)
  np.testing.assert_array_equal(found[1], ids)
  np.testing.assert_allclose(found[0], similarities, atol=2e-6)
  assert knn_accuracy(bank, queries, num_classes=CLASSES, ks=(k,), chunk=chunk,
                      mesh=mesh) == pytest.approx({k: accuracy})


@pytest.mark.slow
def test_k_beyond_the_bank_is_the_whole_bank(mesh):
  rows = draw(13, 20, width=4)
  bank, queries = on_mesh(mesh, *rows[:2]), on_mesh(mesh, *rows[2:])
  accuracies = knn_accuracy(bank, queries, num_classes=CLASSES, ks=(13, 200), mesh=mesh)
  assert accuracies[200] == accuracies[13] == pytest.approx(reference(*rows, 13, 0.07)[0])
  assert neighbours(bank, queries, 200, mesh)[1].shape == (20, 13)


def test_equal_similarities_come_in_the_order_of_ids(mesh):
  # The devices take turns, as in batch after batch.
  ids = np.arange(48).reshape(-1, mesh.size).T.ravel()
  bank = on_mesh(mesh, np.eye(3)[ids % 3], np.zeros(48), ids=ids)
  _, found = neighbours(bank, on_mesh(mesh, np.eye(3), np.zeros(3)), 18, mesh, chunk=2)
  for query, row in enumerate(found):
    np.testing.assert_array_equal(row[:16], np.arange(query, 48, 3))
    np.testing.assert_array_equal(row[16:], np.flatnonzero(np.arange(48) % 3 != query)[:2])


def test_a_mesh_of_two_axes_gives_the_same(mesh8):
  rows = draw(50, 20, width=4)
  grid = make_mesh({'host': 2, 'data': 4})
  results = [neighbours(on_mesh(mesh, *rows[:2]), on_mesh(mesh, *rows[2:]), 9, mesh)
             for mesh in (mesh8, grid)]
  np.testing.assert_array_equal(results[0][1], results[1][1])


def test_queries_without_a_label_do_not_count(mesh):
  bank = on_mesh(mesh, np.eye(2), [0, 1])
  queries = on_mesh(mesh, np.eye(2)[[0, 1, 1]], [0, 0, -1])
  assert knn_accuracy(bank, queries, num_classes=2, ks=(1,), mesh=mesh) == {1: 0.5}
  with pytest.raises(UserError, match='has a label'):
    knn_accuracy(bank, on_mesh(mesh, np.eye(2), [-1, -1]), num_classes=2, ks=(1,), mesh=mesh)


def test_small_temperatures_do_not_overflow(mesh):
  rows = draw(40, 30, width=4)
  bank, queries = on_mesh(mesh, *rows[:2]), on_mesh(mesh, *rows[2:])
  accuracies = knn_accuracy(bank, queries, num_classes=CLASSES, ks=(1, 10), temperature=1e-4,
                            mesh=mesh)
  assert accuracies[10] == accuracies[1] == pytest.approx(reference(*rows, 1, 1.)[0])


def test_no_collective_is_as_large_as_the_bank(mesh8):
  rows = draw(4096, 64, width=16)
  bank, queries = on_mesh(mesh8, *rows[:2]), on_mesh(mesh8, *rows[2:])
  text = knn._nearest.lower(bank, queries, k=5, chunk=128, mesh=mesh8).compile().as_text()
  collective = r'= (.*?) (?:all-gather|all-to-all|all-reduce|collective-permute)(?:-start)?\('
  sizes = [np.prod([int(side) for side in shape.split(',') if side])
           for types in re.findall(collective, text)
           for shape in re.findall(r'\w+\[([\d,]*)\]', types)]
  assert sizes
  assert max(sizes) <= 64 * 16  # The queries; a device gets 8 · 8 · 5 candidates.
