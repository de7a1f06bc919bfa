"""Grid of images and their nearest neighbours."""
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from conic_jax.errors import UserError
from conic_jax.visualise.style import BLUE, ORANGE, draw_image, drawing, save

_WIDE = 10  # Neighbours per row; more wrap to the next row.


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
  wide, lines = min(k, _WIDE), -(-k // _WIDE)
  with drawing():
    layout = ConstrainedLayoutEngine(w_pad=0.025, h_pad=0.025, wspace=0, hspace=0)
    figure = Figure(figsize=(0.9 * (wide + 1.2), 1.06 * num_queries * lines + 0.6), layout=layout)
    axes = figure.subplots(num_queries * lines, wide + 2, squeeze=False,
                           width_ratios=[1, 0.15] + [1] * wide).reshape(num_queries, lines, wide + 2)
    for row in range(num_queries):
      draw_image(axes[row, 0, 0], query_images[row], '#444444')
      for rank in range(k):
        colour = '#444444'
        if same_label is not None:
          colour = BLUE if same_label[row, rank] else ORANGE
        line, place = divmod(rank, wide)
        axis = axes[row, line, 2 + place]
        draw_image(axis, neighbour_images[row, rank], colour)
        axis.set_xlabel(f'{similarities[row, rank]:.2f}', fontsize=7, labelpad=3)
    for axis in axes.ravel():
      if not axis.images:
        axis.set_axis_off()
    axes[0, 0, 0].set_title('query', fontsize=8, loc='center')
    # A text because the width of a title would push the columns apart.
    axes[0, 0, 2].text(0, 1.07, 'nearest neighbours, with cosine similarity', fontsize=8,
                       transform=axes[0, 0, 2].transAxes, in_layout=False)
    if same_label is not None:
      frames = [Patch(fill=False, edgecolor=BLUE, linewidth=2, label='same class'),
                Patch(fill=False, edgecolor=ORANGE, linewidth=2, label='another class')]
      figure.legend(handles=frames, loc='outside lower center', ncols=2, fontsize=8)
    save(figure, out, dpi=100)
