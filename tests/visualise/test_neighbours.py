import numpy as np
import pytest
from matplotlib.colors import to_rgba
from pictures import check_picture, smooth

from conic_jax import visualise
from conic_jax.errors import UserError
from conic_jax.visualise import style


def shown_in(figure):
  """(corners of the images [n, 2], colours of their frames [n, 4], numbers below them), as drawn."""
  axis = figure.axes[0]
  corners = [image.get_extent()[::3] for image in axis.images]
  frames = [colour for frames in axis.collections for colour in frames.get_edgecolor()]
  places = [tuple(path.vertices[0]) for frames in axis.collections for path in frames.get_paths()]
  np.testing.assert_allclose(places, corners)  # Each frame is around its image.
  return np.array(corners), np.array(frames), [text.get_text() for text in axis.texts[:-2]]


@pytest.mark.parametrize('labelled', [True, False])
def test_neighbours_are_framed_by_class(figures, tmp_path, labelled):
  similarities = np.linspace(0.9, 0.1, 48).reshape(6, 8)
  same = np.arange(48).reshape(6, 8) % 3 == 0
  out = tmp_path / 'neighbours.png'
  visualise.neighbours_grid(smooth(6), smooth(6, 8), similarities, same if labelled else None, out)
  corners, colours, numbers = shown_in(figures[0])
  assert numbers == [f'{value:.2f}' for value in similarities.ravel()]
  grey = np.broadcast_to(to_rgba('#444444'), (48, 4))
  expected = np.where(same.reshape(-1, 1), to_rgba(style.BLUE), to_rgba(style.ORANGE)) if labelled else grey
  np.testing.assert_allclose(colours, [*grey[:6], *expected])
  below = [text.get_position() for text in figures[0].axes[0].texts[:-2]]
  np.testing.assert_allclose(below - corners[6:], np.broadcast_to((0.5, 1.05), (48, 2)))
  assert len(figures[0].legends) == labelled
  check_picture(out)


def test_each_image_is_drawn_in_its_place(figures, tmp_path):
  queries, neighbours = smooth(2), smooth(2, 3)
  visualise.neighbours_grid(queries, neighbours, np.ones((2, 3)), None, tmp_path / 'neighbours.png')
  corners, _, _ = shown_in(figures[0])
  given = [*queries, *neighbours.reshape(-1, *queries.shape[1:])]
  for image, expected in zip(figures[0].axes[0].images, given, strict=True):
    np.testing.assert_array_equal(image.get_array(), expected)
  queries, neighbours = corners[:2], corners[2:].reshape(2, 3, 2)
  np.testing.assert_allclose(neighbours[..., 1], np.broadcast_to(queries[:, 1:], (2, 3)))
  assert (np.diff(neighbours[..., 0]) > 1).all()
  assert (neighbours[:, 0, 0] > queries[:, 0] + 1).all()
  assert np.diff(queries[:, 1]) > 1


@pytest.mark.parametrize(('k', 'wide', 'lines'), [(1, 1, 1), (3, 3, 1), (10, 10, 1), (23, 10, 3)])
def test_many_neighbours_go_on_below(figures, tmp_path, k, wide, lines):
  similarities = np.linspace(0.9, 0.1, 2 * k).reshape(2, k)
  visualise.neighbours_grid(smooth(2), smooth(2, k), similarities, None, tmp_path / 'neighbours.png')
  corners, _, numbers = shown_in(figures[0])
  assert numbers == [f'{value:.2f}' for value in similarities.ravel()]
  columns = np.unique(corners[2:, 0].round(6))
  rows = np.unique(corners[2:, 1].round(6))
  assert (len(columns), len(rows)) == (wide, 2 * lines)
  np.testing.assert_allclose(corners[:2, 1], rows[::lines])
  places = [divmod(rank, wide) for rank in range(k)]
  expected = [(columns[place], rows[query * lines + line]) for query in range(2) for line, place in places]
  np.testing.assert_allclose(corners[2:], expected, atol=1e-6)
  axis = figures[0].axes[0]
  assert corners.max(axis=0)[0] + 1 < axis.get_xlim()[1]
  assert corners.max(axis=0)[1] + 1.2 < axis.get_ylim()[0]


def test_similarities_that_are_no_numbers_are_drawn(tmp_path):
  visualise.neighbours_grid(smooth(1), smooth(1, 1), np.array([[np.nan]]), None, tmp_path / 'n.png')
  check_picture(tmp_path / 'n.png')


@pytest.mark.parametrize(('queries', 'k'), [(0, 3), (2, 0)])
def test_nothing_to_show_is_refused(tmp_path, queries, k):
  with pytest.raises(UserError, match='no images with neighbours'):
    visualise.neighbours_grid(smooth(queries), smooth(queries, k), np.zeros((queries, k)), None,
                              tmp_path / 'n.png')
