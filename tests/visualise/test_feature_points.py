import sys

import numpy as np
import pytest
from pictures import check_picture

from conic_jax import visualise
from conic_jax.errors import UserError


@pytest.mark.slow
@pytest.mark.parametrize(('num_classes', 'listed'), [(4, 4), (20, 20), (30, 0), (None, 0)])
def test_feature_map_lists_few_classes_which_look_different(figures, tmp_path, num_classes, listed):
  labels = np.arange(60) % (num_classes or 1)
  names = [f'class $x_{{{label}$' for label in range(num_classes or 0)]
  features = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
  out = tmp_path / 'map.png'
  visualise.feature_map(features, labels if num_classes else None, names, out, seed=0)
  legend = figures[0].axes[0].get_legend()
  assert [text.get_text() for text in legend.get_texts()] == names if listed else legend is None
  handles = legend.legend_handles if legend else []
  assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == listed
  drawn = sum(len(points.get_offsets()) for points in figures[0].axes[0].collections)
  assert drawn == 60
  check_picture(out)


@pytest.mark.slow
def test_rows_that_are_not_finite_are_left_out_with_their_labels(figures, tmp_path):
  features = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
  features[[0, 3, 4]] = np.nan
  visualise.feature_map(features, np.arange(60) % 3, ['a', 'b', 'c'], tmp_path / 'map.png', seed=0)
  axis = figures[0].axes[0]
  assert axis.get_title(loc='left') == (
    't-SNE of the features of 57 images\n3 without finite features left out')
  assert [len(points.get_offsets()) for points in axis.collections] == [18, 19, 20]


@pytest.mark.parametrize(('rows', 'title'), [
  (60, 'One point of the features of 60 images\nall point in the same direction'),
  (3, 'One point of the features of 3 images\nall point in the same direction'),
  (1, 'One point of the features of 1 image\nall point in the same direction')])
@pytest.mark.parametrize('labelled', [True, False])
def test_features_without_variance_are_drawn(figures, tmp_path, rows, title, labelled):
  visualise.feature_map(np.ones((rows, 12)), np.zeros(rows, int) if labelled else None, ['only'],
                        tmp_path / 'map.png', seed=0)
  assert figures[0].axes[0].get_title(loc='left') == title
  check_picture(tmp_path / 'map.png')


def test_the_title_says_where_there_is_no_tsne(figures, tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'executable', '/bin/false')
  features = np.random.default_rng(0).normal(size=(60, 12))
  visualise.feature_map(features, np.arange(60) * 17 % 1000, [str(i) for i in range(1000)],
                        tmp_path / 'map.png', seed=0)
  axis = figures[0].axes[0]
  assert axis.get_title(loc='left') == 'Two principal components of the features of 60 images\nt-SNE failed'
  assert len(axis.collections[0].get_offsets()) == 60
  check_picture(tmp_path / 'map.png')


def test_features_of_which_none_is_finite_are_refused(tmp_path):
  with pytest.raises(UserError, match='none of the features of 60 images is finite'):
    visualise.feature_map(np.full((60, 12), np.inf), None, [], tmp_path / 'map.png', seed=0)
