import numpy as np
import pytest
from pictures import check_picture

from conic_jax import visualise
from conic_jax.visualise import feature_points as feature_maps


@pytest.mark.parametrize(('num_classes', 'listed'), [(4, 4), (20, 20), (30, 0), (None, 0)])
def test_feature_map_lists_few_classes(figures, tmp_path, num_classes, listed):
  labels = np.arange(60) % (num_classes or 1)
  names = [f'class $x_{{{label}$' for label in range(num_classes or 0)]
  features = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
  out = tmp_path / 'map.png'
  visualise.feature_map(features, labels if num_classes else None, names, out, seed=0)
  legend = figures[0].axes[0].get_legend()
  assert [text.get_text() for text in legend.get_texts()] == names if listed else legend is None
  drawn = sum(len(points.get_offsets()) for points in figures[0].axes[0].collections)
  assert drawn == 60
  check_picture(out)


def test_every_listed_class_looks_different(figures, tmp_path):
  features = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
  visualise.feature_map(features, np.arange(60) % 20, [str(i) for i in range(20)],
                        tmp_path / 'map.png', seed=0)
  handles = figures[0].axes[0].get_legend().legend_handles
  assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == 20


def test_feature_map_keeps_clusters_apart_and_depends_on_the_seed_alone(tmp_path):
  centres = 10 * np.eye(3, 12)
  labels = np.arange(90) % 3
  features = centres[labels] + np.random.default_rng(0).normal(size=(90, 12))
  points = feature_maps._embed(features, seed=1)
  np.testing.assert_array_equal(points, feature_maps._embed(features, seed=1))
  distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
  np.fill_diagonal(distances, np.inf)
  np.testing.assert_array_equal(labels[distances.argmin(1)], labels)
