import json

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from conic_jax import visualise
from conic_jax.errors import UserError
from conic_jax.visualise import features as feature_maps
from conic_jax.visualise import style


@pytest.fixture
def figures(monkeypatch):
  """The figures that were written, which are written as ever."""
  seen, savefig = [], Figure.savefig
  def keep(figure, *arguments, **options):
    seen.append(figure)
    savefig(figure, *arguments, **options)
  monkeypatch.setattr(Figure, 'savefig', keep)
  return seen


def check_picture(path):
  with Image.open(path) as picture:
    assert len(np.unique(np.asarray(picture.convert('L')))) > 2
  assert path.stat().st_size < 400_000


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def smooth(*shape):
  """Photograph-like images uint8 [*shape, 96, 96, 3]."""
  y, x = np.mgrid[:96, :96][..., None] / 20
  phase = np.random.default_rng(0).uniform(0, 6, (*shape, 1, 1, 3))
  return (127 + 120 * np.sin(x + phase) * np.cos(y * phase / 3)).astype(np.uint8)


def test_loss_curves_draw_what_the_run_reports(figures, tmp_path):
  rows = [{'step': step, 'epoch': step / 4, 'loss': 9. - step, 'loss_instance': 8. - step,
           'instance_top1': step / 10, 'learning_rate': 0.1} for step in range(8)]
  rows.insert(4, {'step': 4, 'epoch': 1., 'knn_top1': 0.25})
  out = tmp_path / 'figures' / 'curves.png'
  visualise.loss_curves(write(tmp_path / 'metrics.jsonl', rows), out)
  axes = {axis.get_title(loc='left'): axis for axis in figures[0].axes if axis.lines}
  assert set(axes) == {'Loss (nats)', 'Instance top-1 (%)', 'kNN top-1 (%)', 'Learning rate'}
  total, instance = axes['Loss (nats)'].lines
  np.testing.assert_allclose(total.get_xdata(), np.arange(8) / 4)
  np.testing.assert_allclose(total.get_ydata(), 9. - np.arange(8))
  np.testing.assert_allclose(instance.get_ydata(), 8. - np.arange(8))
  np.testing.assert_allclose(axes['Instance top-1 (%)'].lines[0].get_ydata(), 10. * np.arange(8))
  np.testing.assert_allclose(axes['kNN top-1 (%)'].lines[0].get_xydata(), [[1., 25.]])
  check_picture(out)


def test_long_curves_are_smoothed_over_the_raw_ones(figures, tmp_path):
  rows = [{'epoch': step / 100, 'loss_consistency': step % 2} for step in range(1000)]
  out = tmp_path / 'curves.png'
  visualise.loss_curves(write(tmp_path / 'metrics.jsonl', rows), out)
  raw, smoothed = figures[0].axes[0].lines
  assert len(raw.get_ydata()) == 1000
  np.testing.assert_allclose(smoothed.get_ydata(), 0.5)
  np.testing.assert_allclose(smoothed.get_xdata()[0], np.arange(10).mean() / 100)
  check_picture(out)


def test_a_run_without_reports_is_told(tmp_path):
  with pytest.raises(UserError, match=r'metrics\.jsonl holds no reports yet'):
    visualise.loss_curves(write(tmp_path / 'metrics.jsonl', [{'step': 1, 'epoch': 1}]),
                          tmp_path / 'curves.png')


@pytest.mark.parametrize('labelled', [True, False])
def test_neighbours_are_framed_by_class(figures, tmp_path, labelled):
  similarities = np.linspace(0.9, 0.1, 48).reshape(6, 8)
  same = np.arange(48).reshape(6, 8) % 3 == 0
  out = tmp_path / 'neighbours.png'
  visualise.neighbours_grid(smooth(6), smooth(6, 8), similarities, same if labelled else None, out)
  axes = np.reshape(figures[0].axes, (6, 10))[:, 2:]
  assert [[axis.get_xlabel() for axis in row] for row in axes] == [
      [f'{value:.2f}' for value in row] for row in similarities]
  colours = np.array([[axis.spines['top'].get_edgecolor() for axis in row] for row in axes])
  expected = (np.where(same[..., None], to_rgba(style.BLUE), to_rgba(style.ORANGE))
              if labelled else np.broadcast_to(to_rgba('#444444'), (6, 8, 4)))
  np.testing.assert_allclose(colours, expected)
  assert len(figures[0].legends) == labelled
  check_picture(out)


@pytest.mark.parametrize(('num_classes', 'listed'), [(4, 4), (20, 20), (30, 0), (None, 0)])
def test_feature_map_lists_few_classes(figures, tmp_path, num_classes, listed):
  labels = np.arange(60) % (num_classes or 1)
  names = [f'class {label}' for label in range(num_classes or 0)]
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
