"""What features of every kind become in two dimensions, and what kills t-SNE."""
import subprocess
import sys
import time

import numpy as np
import pytest

from conic_jax.errors import UserError
from conic_jax.visualise import projection, tsne_process

NAN, INF = np.nan, np.inf


def normal(rows, width=12):
  return np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)


def with_rows(value, *rows):
  features = normal(60)
  features[list(rows)] = value
  return features


ALIKE = 'all point in the same direction'


@pytest.mark.parametrize(('features', 'method', 'notes'), [
  (np.ones((60, 12)), 'One point', (ALIKE,)), (np.zeros((60, 12)), 'One point', (ALIKE,)),
  (np.arange(1, 61)[:, None] * np.ones(12), 'One point', (ALIKE,)),
  (1 + 1e-9 * normal(60).astype(float), 'One point', (ALIKE,)), (normal(1), 'One point', (ALIKE,)),
  (with_rows(NAN, *range(59)), 'One point', (ALIKE, '59 without finite features left out')),
  (np.ones((60, 0)), 'One point', (ALIKE,)), (normal(2), 'Two principal components', ()),
  (normal(3), 'Two principal components', ()), (normal(49), 'Two principal components', ()),
  (normal(9, 1), 'Two principal components', ()),
  (with_rows(INF, *range(55)), 'Two principal components', ('55 without finite features left out',)),
  (with_rows(NAN, *range(11)), 'Two principal components', ('11 without finite features left out',))])
def test_what_tsne_cannot_show_is_shown_without(features, method, notes):
  found = projection.project(features, seed=0)
  assert (found.method, found.notes) == (method, notes)
  kept = np.flatnonzero(np.isfinite(features).all(axis=1))
  np.testing.assert_array_equal(found.rows, kept)
  assert found.points.shape == (len(kept), 2)
  assert np.isfinite(found.points).all()


@pytest.mark.slow
@pytest.mark.parametrize(('features', 'lost'), [
  (np.concatenate([with_rows(NAN, 3), with_rows(INF, 3, 5), with_rows(-INF, 0)]), 4),
  (1e300 * normal(60).astype(float), 0), (1e-300 * normal(50).astype(float), 0),
  (with_rows(1, *range(59)), 0), (normal(60, 1), 0)],
  ids=['not finite', 'huge', 'fifty tiny ones', 'all equal but one', 'one dimension'])
def test_tsne_of_any_other_features(features, lost):
  found = projection.project(features, seed=0)
  assert found.method == 't-SNE', found.notes
  assert found.notes == ((f'{lost} without finite features left out',) if lost else ())
  assert len(found.rows) == len(found.points) == len(features) - lost
  assert np.isfinite(found.points).all()


@pytest.mark.parametrize(('features', 'why'), [
  (with_rows(NAN, *range(60)), 'none of the features of 60 images is finite'),
  (np.zeros((0, 12)), 'there are no images')])
def test_without_any_finite_row_there_is_nothing_to_show(features, why):
  with pytest.raises(UserError, match=why):
    projection.project(features, seed=0)


@pytest.mark.slow
def test_a_crash_of_tsne_is_told():
  """By the features that are kept from it: the real library, and its real segmentation fault."""
  with pytest.raises(projection.NoEmbedding, match='was ended by SIGSEGV'):
    projection.tsne(np.ones((60, 12)), seed=0, seconds=100)


@pytest.mark.slow
def test_an_exception_of_tsne_is_told():
  with pytest.raises(projection.NoEmbedding, match='failed'):
    projection.tsne(with_rows(NAN, 3), seed=0, seconds=100)


def test_tsne_ends_after_its_time():
  started = time.monotonic()
  with pytest.raises(projection.NoEmbedding, match=r'took over 0\.1 s'):
    projection.tsne(normal(2000, 64), seed=0, seconds=0.1)
  assert time.monotonic() - started < 30


@pytest.mark.parametrize(('program', 'why'), [
  ('kill -SEGV $$', 't-SNE was ended by SIGSEGV'), ('kill -KILL $$', 't-SNE was ended by SIGKILL'),
  ('exit 3', 't-SNE failed'), ('echo no array', 't-SNE failed'), (None, 't-SNE could not start')])
def test_where_the_process_fails_principal_components_are_shown(tmp_path, monkeypatch, program, why):
  python = tmp_path / 'python'
  if program is not None:
    python.write_text(f'#!/bin/sh\n{program}\n')
    python.chmod(0o755)
  monkeypatch.setattr(sys, 'executable', str(python))
  features = normal(60)
  found = projection.project(features, seed=0)
  assert (found.method, found.notes) == ('Two principal components', (why,))
  assert len(found.points) == 60


@pytest.mark.parametrize(('rows', 'width'), [(3, 2), (2, 1), (1, 4), (5, 40), (40, 5), (300, 200)])
def test_the_principal_plane_is_that_of_the_singular_values(rows, width):
  features = normal(rows, width) * 0.9 ** np.arange(width)
  points = projection.principal_plane(features)
  left, values, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
  expected = np.zeros((rows, 2))
  expected[:, :len(values)] = (left * values)[:, :2]
  np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-3)


@pytest.mark.slow
def test_clusters_stay_apart_and_points_depend_on_the_seed_alone():
  centres, labels = 10 * np.eye(3, 12), np.arange(90) % 3
  features = centres[labels] + normal(90)
  points = projection.project(features, seed=1).points
  np.testing.assert_array_equal(points, projection.project(features, seed=1).points)
  distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
  np.fill_diagonal(distances, np.inf)
  np.testing.assert_array_equal(labels[distances.argmin(1)], labels)


@pytest.mark.slow
def test_the_process_imports_neither_jax_nor_what_else_takes_long():
  ended = subprocess.run([sys.executable, '-P', '-X', 'importtime', tsne_process.__file__, '0', '100'],
                         input=b'', capture_output=True, check=False)
  imported = {line.rpartition('|')[2].strip() for line in ended.stderr.decode().splitlines()}
  assert 'sklearn.manifold' in imported
  assert not imported & {'jax', 'jaxlib', 'tensorflow', 'matplotlib', 'conic_jax'}
