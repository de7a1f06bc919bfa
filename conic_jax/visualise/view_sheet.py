"""Images next to their augmented views."""
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from conic_jax.errors import UserError
from conic_jax.visualise.style import (
  BLUE,
  GREEN,
  GREY,
  LETTERED,
  ORANGE,
  draw_image,
  drawing,
  save,
  shown_name,
)

_CELL_GAP = 0.04  # Inset of each cell's frame, as a share of its side.
# Continues the three colours above with the rest of Okabe and Ito's.
_VIEW_COLOURS = (BLUE, ORANGE, GREEN, '#CC79A7', '#E69F00', '#56B4E9', '#F0E442')


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of the picture of views.

  Attributes:
    title: title above the column.
    images: n arrays uint8 [H, W, 3].
    cells: y0, x0, y1, x1 as fractions of the image's sides, [n, r, c, 4]; numbered row by row.
  """
  title: str
  images: Sequence[np.ndarray]
  cells: np.ndarray | None = None


def views_picture(columns: Sequence[Column], crops: np.ndarray, names: Sequence[str],
                  mosaics: np.ndarray | None, out: Path) -> None:
  """Draws images next to their views; each view's frame has the colour of its crop on the image.

  Args:
    columns: the images, then each view.
    crops: y0, x0, y1, x1 of the views as fractions of the image, [n, V, 4].
    names: names of the images; only the last part of a path is shown.
    mosaics: one of every four images, uint8 [n // 4, S, S, 3], drawn below; or None.
    out: file to write.

  Raises:
    UserError: if there is no image.
  """
  if not len(names):
    raise UserError('There are no images to show.')
  rows, wide = len(names), len(columns)
  mosaic_rows = 0 if mosaics is None else -(-len(mosaics) // (wide - 1))
  with drawing():
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0, hspace=0)
    figure = Figure(figsize=(1.7 * wide + 0.3, 1.75 * (rows + mosaic_rows) + 0.4), layout=layout)
    axes = figure.subplots(rows + mosaic_rows, wide, squeeze=False)
    for number, column in enumerate(columns):
      axes[0, number].set_title(column.title, fontsize=8, loc='center')
      for row, axis in enumerate(axes[:rows, number]):
        draw_image(axis, column.images[row], _view_colour(number))
        if column.cells is not None:
          _draw_cells(axis, column.images[row].shape, column.cells[row])
    for row, axis in enumerate(axes[:rows, 0]):
      axis.set_ylabel(row + 1, rotation=0, ha='right', va='center', fontsize=11)
      axis.set_xlabel(shown_name(names[row].rpartition('/')[2][-28:], 28), fontsize=6, labelpad=1)
      _draw_crops(axis, columns[0].images[row].shape, crops[row])
    for axis in axes[rows:].ravel():
      axis.set_axis_off()
    for number, mosaic in enumerate([] if mosaics is None else mosaics):
      row, place = divmod(number, wide - 1)
      _draw_mosaic(axes[rows + row, 1 + place], mosaic, 4 * number + 1)
    save(figure, out)


def _view_colour(column):
  return _VIEW_COLOURS[(column - 1) % len(_VIEW_COLOURS)] if column else GREY


def _rectangle(shape, box, **style):
  """A box given in fractions, on an image drawn by imshow, whose first pixel's corner is at (-½, -½)."""
  height, width = shape[:2]
  y0, x0, y1, x1 = box
  return Rectangle((x0 * width - 0.5, y0 * height - 0.5), (x1 - x0) * width, (y1 - y0) * height, **style)


def _draw_crops(axis, shape, crops):
  for number, box in enumerate(crops):
    axis.add_patch(_rectangle(shape, box, fill=False, linewidth=1.6, edgecolor=_view_colour(number + 1)))


def _draw_cells(axis, shape, cells):
  colours = matplotlib.colormaps['hsv'](np.linspace(0, 1, cells[..., 0].size, endpoint=False))
  for number, (box, colour) in enumerate(zip(cells.reshape(-1, 4), colours, strict=True)):
    inset = _CELL_GAP * np.tile(box[2:] - box[:2], 2) * [1, 1, -1, -1]
    patch = axis.add_patch(_rectangle(shape, box + inset, fill=False, edgecolor=colour, linewidth=1.3))
    axis.text(*patch.get_center(), number + 1, fontsize=7, **LETTERED)


def _draw_mosaic(axis, mosaic, first):
  axis.set_axis_on()
  draw_image(axis, mosaic, GREY)
  side = len(mosaic)
  axis.axhline(side / 2 - 0.5, color='white', linewidth=0.8)
  axis.axvline(side / 2 - 0.5, color='white', linewidth=0.8)
  for quadrant in range(4):
    row, column = divmod(quadrant, 2)
    axis.text((column + 0.12) * side / 2, (row + 0.14) * side / 2, first + quadrant, fontsize=9, **LETTERED)
  axis.set_xlabel(f'mosaic of {first}–{first + 3}', fontsize=7, labelpad=1)
