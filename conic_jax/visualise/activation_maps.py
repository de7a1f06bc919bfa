"""Activation maps of encoders, drawn over the images."""
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from conic_jax.errors import UserError
from conic_jax.visualise.style import GREY, draw_image, drawing, save, shown_name

_HEAT, _OPACITY = 'inferno', 0.65
_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601.


def activations_picture(images: np.ndarray, maps: Sequence[tuple[str, np.ndarray]], out: Path) -> None:
  """Draws images next to each encoder's activation maps, which overlay the grey image.

  Args:
    images: uint8 [n, S, S, 3].
    maps: title and maps of each encoder, float [n, S, S] from 0 to 1.
    out: file to write.

  Raises:
    UserError: if there is no image.

  Source: Consistent Instance Classification for Unsupervised Representation Learning, Figure 1.
  """
  if not len(images):
    raise UserError('There are no images to show.')
  rows, columns = len(images), 1 + len(maps)
  with drawing():
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.05, wspace=0, hspace=0)
    figure = Figure(figsize=(1.7 * columns + 0.2, 1.7 * rows + 0.7), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False)
    pictures = [('image', images), *((title, _over(images, values)) for title, values in maps)]
    for column, (title, drawn) in zip(axes.T, pictures, strict=True):
      column[0].set_title(shown_name(title[-28:], 28), fontsize=8, loc='center')
      for axis, picture in zip(column, drawn, strict=True):
        draw_image(axis, picture, GREY)
    bar = figure.colorbar(ScalarMappable(cmap=_HEAT), ax=axes, location='bottom', aspect=40, shrink=0.5,
                          pad=0.05 / rows, ticks=[0, 1],
                          format=lambda value, _: 'most active' if value else 'least')
    bar.ax.tick_params(labelsize=7, length=0)
    save(figure, out)


def _over(images, maps):
  """The coloured maps over the grey images, uint8 [n, S, S, 3]."""
  grey = (images @ _LUMINANCE)[..., None]
  heat = 255 * matplotlib.colormaps[_HEAT](maps)[..., :3]
  return (_OPACITY * heat + (1 - _OPACITY) * grey).round().astype(np.uint8)
