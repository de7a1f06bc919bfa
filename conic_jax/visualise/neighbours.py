"""Grid of images and their nearest neighbours."""
from pathlib import Path

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from conic_jax.errors import UserError
from conic_jax.visualise.style import BLUE, GREY, ORANGE, drawing, save

_WIDE = 10  # Neighbours per row; more wrap to the next row.
# In sides of an image, which is drawn _INCHES wide: what lies between images and around them.
_INCHES = 0.96
_ACROSS, _AFTER_QUERY, _DOWN, _EDGE, _HEADING, _LEGEND = 0.1, 0.3, 0.25, 0.08, 0.2, 0.3
_NARROWEST = 4.0  # What the heading needs.


def neighbours_grid(query_images: np.ndarray, neighbour_images: np.ndarray,
                    similarities: np.ndarray, same_label: np.ndarray | None, out: Path) -> None:
  """Draws each query next to its nearest neighbours; the frame's colour shows whether the class matches.

  Args:
    query_images: uint8 [Q, S, S, 3].
    neighbour_images: uint8 [Q, k, S, S, 3], nearest first.
    similarities: cosine similarities [Q, k].
    same_label: bool [Q, k], or None if classes are unknown.
    out: file to write.

  Raises:
    UserError: if there is no image, or none has a neighbour.
  """
  num_queries, k = similarities.shape
  if not similarities.size:
    raise UserError('There are no images with neighbours to show.')
  queries, neighbours = _places(num_queries, k)
  labelled = same_label is not None
  width = max(neighbours[..., 0].max() + 1 + _EDGE, _NARROWEST)
  height = neighbours[..., 1].max() + 1 + _DOWN + labelled * _LEGEND
  colours = np.where(same_label, BLUE, ORANGE) if labelled else np.full((num_queries, k), GREY)
  with drawing():
    figure = Figure(figsize=(_INCHES * width, _INCHES * height))
    # One pair of axes for all images: one for each would take most of the time.
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.set_axis_off()
    for images, corners, frames in ((query_images, queries, [GREY] * num_queries),
                                    (neighbour_images, neighbours, colours.ravel())):
      _draw(axis, images.reshape(-1, *images.shape[-3:]), corners.reshape(-1, 2), frames)
    for (x, y), similarity in zip(neighbours.reshape(-1, 2), similarities.ravel(), strict=True):
      axis.text(x + 0.5, y + 1.05, f'{similarity:.2f}', fontsize=7, ha='center', va='top')
    axis.text(queries[0, 0] + 0.5, _HEADING - 0.07, 'query', fontsize=8, ha='center')
    axis.text(neighbours[0, 0, 0], _HEADING - 0.07, 'nearest neighbours, with cosine similarity', fontsize=8)
    if labelled:
      handles = [Patch(fill=False, edgecolor=BLUE, linewidth=2, label='same class'),
                 Patch(fill=False, edgecolor=ORANGE, linewidth=2, label='another class')]
      figure.legend(handles=handles, loc='lower center', ncols=2, fontsize=8)
    save(figure, out, dpi=100)


def _places(num_queries, k):
  """Upper left corners, x and y in sides of an image: of the queries [Q, 2], of the neighbours [Q, k, 2]."""
  lines = -(-k // _WIDE)
  tops = _HEADING + (1 + _DOWN) * np.arange(num_queries * lines).reshape(num_queries, lines)
  queries = np.stack([np.full(num_queries, _EDGE), tops[:, 0]], axis=-1)
  line, place = np.divmod(np.arange(k), _WIDE)
  left = _EDGE + 1 + _AFTER_QUERY + (1 + _ACROSS) * place
  return queries, np.stack([np.broadcast_to(left, (num_queries, k)), tops[:, line]], axis=-1)


def _draw(axis, images, corners, frames):
  """Draws images, [n, S, S, 3], at their corners [n, 2], each in a frame of its colour."""
  for image, (x, y) in zip(images, corners, strict=True):
    axis.imshow(image, interpolation='nearest', extent=(x, x + 1, y + 1, y), aspect='auto', clip_on=False)
  axis.add_collection(PatchCollection([Rectangle(corner, 1, 1) for corner in corners], facecolors='none',
                                      edgecolors=frames, linewidths=2, zorder=2))
