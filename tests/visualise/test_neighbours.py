import numpy as np
import pytest
from matplotlib.colors import to_rgba
from pictures import check_picture, smooth

from conic_jax import visualise
from conic_jax.errors import UserError
from conic_jax.visualise import style


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(('k', 'wide', 'lines'), [(3, 3, 1), (10, 10, 1), (23, 10, 3)])
def test_many_neighbours_go_on_below(figures, tmp_path, k, wide, lines):
  similarities = np.linspace(0.9, 0.1, 2 * k).reshape(2, k)
  visualise.neighbours_grid(smooth(2), smooth(2, k), similarities, None, tmp_path / 'neighbours.png')
  axes = np.reshape(figures[0].axes, (2, lines, wide + 2))
  for query in range(2):
    shown = [axis for axis in axes[query, :, 2:].ravel() if axis.images]
    assert [axis.get_xlabel() for axis in shown] == [f'{value:.2f}' for value in similarities[query]]
    assert [bool(axis.images) for axis in axes[query, :, 0]] == [True] + [False] * (lines - 1)
  assert all(bool(axis.images) == axis.axison for axis in axes.ravel())


def test_similarities_that_are_no_numbers_are_drawn(tmp_path):
  visualise.neighbours_grid(smooth(1), smooth(1, 1), np.array([[np.nan]]), None, tmp_path / 'n.png')
  check_picture(tmp_path / 'n.png')


@pytest.mark.parametrize(('queries', 'k'), [(0, 3), (2, 0)])
def test_nothing_to_show_is_refused(tmp_path, queries, k):
  with pytest.raises(UserError, match='no images with neighbours'):
    visualise.neighbours_grid(smooth(queries), smooth(queries, k), np.zeros((queries, k)), None,
                              tmp_path / 'n.png')
