import json
import math

import numpy as np
import pytest
from pictures import check_picture

from conic_jax import visualise
from conic_jax.errors import UserError


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


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


def test_baselines_are_dashed_lines_with_a_legend(figures, tmp_path):
  rows = [{'epoch': 0., 'probe_rankme_random': 11., 'probe_rankme_pixels': 70., 'knn_top1_random': 0.3,
           'probe_std_random': 0.2},
          *({'epoch': float(epoch), 'probe_rankme': 5. * epoch, 'feature_std': 0.9, 'probe_std': 0.5,
             'verdict': 'learning'} for epoch in range(1, 4))]
  out = tmp_path / 'curves.png'
  visualise.loss_curves(write(tmp_path / 'metrics.jsonl', rows), out)
  axes = {axis.get_title(loc='left'): axis for axis in figures[0].axes if axis.lines}
  assert set(axes) == {'Effective rank of features', 'Feature standard deviation'}
  own, random, pixels = axes['Effective rank of features'].lines
  assert [line.get_linestyle() for line in (own, random, pixels)] == ['-', '--', '--']
  assert (set(random.get_ydata()), set(pixels.get_ydata())) == ({11.}, {70.})
  legends = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in axes.values()]
  assert legends == [['this run', 'random network', 'raw pixels'], ['head', 'encoder', 'random network']]
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


@pytest.mark.parametrize('rows', [
  [{'epoch': 0., 'loss': 3., 'knn_top1': 0.5}],
  [{'epoch': float(epoch), 'loss': math.nan, 'knn_top1': -math.inf, 'knn_top1_random': math.nan}
   for epoch in range(3)],
  [{'epoch': epoch / 4, 'loss': (-1)**epoch * 1.7e308, 'knn_top1': 1e308, 'knn_top1_pixels': math.inf,
    'learning_rate': 1e-320, 'alignment': (-1)**epoch * 9e29, 'loss_consistency': 10**400}
   for epoch in range(400)]], ids=['a single report', 'no numbers', 'huge'])
def test_any_figure_is_drawn_or_left_out(tmp_path, rows):
  out = tmp_path / 'curves.png'
  visualise.loss_curves(write(tmp_path / 'metrics.jsonl', rows), out)
  check_picture(out)


def test_a_figure_that_is_no_number_leaves_a_gap(figures, tmp_path):
  rows = [{'epoch': float(epoch), 'loss': value} for epoch, value in enumerate([4., math.nan, 2., 1e31])]
  visualise.loss_curves(write(tmp_path / 'metrics.jsonl', rows), tmp_path / 'curves.png')
  np.testing.assert_array_equal(figures[0].axes[0].lines[0].get_ydata(), [4, math.nan, 2, math.nan])
