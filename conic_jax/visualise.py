"""Pictures of a run: its curves, the neighbours of held-out images, the map of its features, its views."""
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image

from conic_jax.errors import UserError

# Okabe and Ito's blue, vermilion and green, apart in every common kind of colour blindness.
BLUE, ORANGE, GREEN = '#0072B2', '#D55E00', '#009E73'
# Tol's muted scheme and a grey; beyond ten classes the marker changes too.
CLASS_COLOURS = ('#332288', '#CC6677', '#117733', '#88CCEE', '#882255', '#DDCC77', '#44AA99',
                 '#AA4499', '#999933', '#777777')
_LISTED_CLASSES = 20
_CELL_GAP = 0.04  # Between the frames of neighbouring cells, as a share of their side, on either side.
# The rest of Okabe and Ito's, after the three above.
_VIEW_COLOURS = (BLUE, ORANGE, GREEN, '#CC79A7', '#E69F00', '#56B4E9', '#F0E442')
_LETTERED: dict[str, Any] = {'color': 'white', 'ha': 'center', 'va': 'center', 'clip_on': True,
                             'path_effects': [withStroke(linewidth=1.5, foreground='black')]}
_STYLE: dict[Any, Any] = {'font.size': 9, 'axes.titlesize': 10, 'axes.titlelocation': 'left',
                          'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True,
                          'axes.axisbelow': True, 'grid.color': '#E6E6E6', 'grid.linewidth': 0.6,
                          'axes.edgecolor': '#666666', 'xtick.color': '#444444', 'ytick.color': '#444444',
                          'legend.frameon': False}
# Title of the panel, factor on the values and the series (name in the file, legend, colour) in it.
_PANELS = (
    ('Loss (nats)', 1, (('loss', 'total', BLUE), ('loss_instance', 'instance', ORANGE),
                        ('loss_contrast', 'contrast', ORANGE), ('loss_single', 'single', ORANGE),
                        ('loss_multi', 'mosaics', GREEN), ('loss_cell', 'cells', '#CC79A7'))),
    ('Consistency loss', 1, (('loss_consistency', '', GREEN),)),
    ('Instance top-1 (%)', 100, (('instance_top1', '', BLUE),)),
    ('Own key nearest (%)', 100, (('contrast_top1', '', BLUE),)),
    ('kNN top-1 (%)', 100, (('knn_top1', '', ORANGE),)),
    ('Alignment (lower: views closer)', 1, (('alignment', '', BLUE),)),
    ('Uniformity (lower: more spread)', 1, (('uniformity', '', BLUE),)),
    ('Feature standard deviation', 1, (('feature_std', '', BLUE),)),
    ('Learning rate', 1, (('learning_rate', '', '#444444'),)),
)


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of the picture of views.

  Attributes:
    title: above it.
    images: n of uint8 [H, W, 3].
    cells: y0, x0, y1, x1 as fractions of the image's sides, [n, r, c, 4]; numbered row by row.
  """
  title: str
  images: Sequence[np.ndarray]
  cells: np.ndarray | None = None


def loss_curves(metrics: Path, out: Path) -> None:
  """Draws the curves of a run as small multiples over the epochs.

  Args:
    metrics: file with one JSON object a line; each has 'epoch' and some of 'loss', 'loss_instance',
      'loss_consistency', 'alignment', 'uniformity', 'instance_top1', 'knn_top1', 'feature_std' and
      'learning_rate'. What no line has gets no panel.
    out: picture to write.

  Raises:
    UserError: where the file holds none of them.
  """
  rows = [json.loads(line) for line in metrics.read_text().splitlines() if line.strip()]
  names = {name for row in rows for name in row}
  panels = [panel for panel in _PANELS if any(series[0] in names for series in panel[2])]
  if not panels:
    raise UserError(f'{metrics} holds no reports yet: let the run reach its first report.')
  columns = min(len(panels), 4)
  lines = -(-len(panels) // columns)
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(3 * columns, 2.3 * lines), layout='constrained')
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, axis in zip(panels, axes, strict=False):
      _draw_panel(axis, rows, *panel)
    for axis in axes[:len(panels)][-columns:]:
      axis.set_xlabel('epoch')
    for axis in axes[len(panels):]:
      axis.set_axis_off()
    _save(figure, out)


def neighbours_grid(query_images: np.ndarray, neighbour_images: np.ndarray,
                    similarities: np.ndarray, same_label: np.ndarray | None, out: Path) -> None:
  """Draws each query beside its nearest neighbours, framed by whether they are of its class.

  Args:
    query_images: uint8 [Q, S, S, 3].
    neighbour_images: uint8 [Q, k, S, S, 3], the nearest first.
    similarities: cosine similarities [Q, k].
    same_label: bool [Q, k], or None where classes are not known.
    out: picture to write.
  """
  num_queries, k = similarities.shape
  with matplotlib.rc_context(_STYLE):
    layout = ConstrainedLayoutEngine(w_pad=0.025, h_pad=0.025, wspace=0, hspace=0)
    figure = Figure(figsize=(0.9 * (k + 1.2), 1.06 * num_queries + 0.6), layout=layout)
    axes = figure.subplots(num_queries, k + 2, squeeze=False,
                           width_ratios=[1, 0.15] + [1] * k)
    for row in range(num_queries):
      _draw_image(axes[row, 0], query_images[row], '#444444')
      axes[row, 1].set_axis_off()
      for rank in range(k):
        colour = '#444444'
        if same_label is not None:
          colour = BLUE if same_label[row, rank] else ORANGE
        axis = axes[row, 2 + rank]
        _draw_image(axis, neighbour_images[row, rank], colour)
        axis.set_xlabel(f'{similarities[row, rank]:.2f}', fontsize=7, labelpad=1)
    axes[0, 0].set_title('query', fontsize=8, loc='center')
    # A text, not a title, whose width would push the columns apart.
    axes[0, 2].text(0, 1.07, 'nearest neighbours, with cosine similarity', fontsize=8,
                    transform=axes[0, 2].transAxes, in_layout=False)
    if same_label is not None:
      frames = [Patch(fill=False, edgecolor=BLUE, linewidth=2, label='same class'),
                Patch(fill=False, edgecolor=ORANGE, linewidth=2, label='another class')]
      figure.legend(handles=frames, loc='outside lower center', ncols=2, fontsize=8)
    _save(figure, out, dpi=100)


def feature_map(features: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str],
                out: Path, seed: int) -> None:
  """Draws the features in two dimensions: PCA to at most 50, then t-SNE on unit features.

  Args:
    features: [n, F].
    labels: integers [n], or None: all points in one colour.
    class_names: names of the classes, listed beside the map where there are at most 20.
    out: picture to write.
    seed: of t-SNE.
  """
  points = _embed(features, seed)
  with matplotlib.rc_context(_STYLE):
    width, height = np.ptp(points, axis=0)
    figure = Figure(figsize=(6.6, float(np.clip(5 * height / width, 3, 7)) + 0.4),
                    layout='constrained')
    axis = figure.subplots()
    size = float(np.clip(12000 / len(points), 4, 24))
    if labels is None:
      axis.scatter(*points.T, s=size, color=BLUE, linewidths=0, alpha=0.7)
    elif len(class_names) > _LISTED_CLASSES:
      axis.scatter(*points.T, s=size, c=labels, cmap='turbo', linewidths=0, alpha=0.7)
    else:
      _draw_classes(axis, points, labels, class_names, size)
    axis.set(xticks=[], yticks=[], aspect='equal',
             title=f't-SNE of the features of {len(points):,} images')
    axis.spines[:].set_visible(False)
    _save(figure, out)


def views_picture(columns: Sequence[Column], crops: np.ndarray, names: Sequence[str],
                  mosaics: np.ndarray | None, out: Path) -> None:
  """Draws images beside their views, each framed in the colour that its crop has on the image.

  Args:
    columns: the images themselves, then each view.
    crops: y0, x0, y1, x1 of the views as fractions of the image, [n, V, 4].
    names: of the images; what follows a path is written.
    mosaics: of every four images, uint8 [n // 4, S, S, 3], or None; drawn below.
    out: picture to write.
  """
  rows, wide = len(names), len(columns)
  mosaic_rows = 0 if mosaics is None else -(-len(mosaics) // (wide - 1))
  with matplotlib.rc_context(_STYLE):
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0, hspace=0)
    figure = Figure(figsize=(1.7 * wide + 0.3, 1.75 * (rows + mosaic_rows) + 0.4), layout=layout)
    axes = figure.subplots(rows + mosaic_rows, wide, squeeze=False)
    for number, column in enumerate(columns):
      axes[0, number].set_title(column.title, fontsize=8, loc='center')
      for row, axis in enumerate(axes[:rows, number]):
        _draw_image(axis, column.images[row], _view_colour(number))
        if column.cells is not None:
          _draw_cells(axis, column.images[row].shape, column.cells[row])
    for row, axis in enumerate(axes[:rows, 0]):
      axis.set_ylabel(row + 1, rotation=0, ha='right', va='center', fontsize=11)
      axis.set_xlabel(names[row].rpartition('/')[2][-28:], fontsize=6, labelpad=1)
      _draw_crops(axis, columns[0].images[row].shape, crops[row])
    for axis in axes[rows:].ravel():
      axis.set_axis_off()
    for number, mosaic in enumerate([] if mosaics is None else mosaics):
      row, place = divmod(number, wide - 1)
      _draw_mosaic(axes[rows + row, 1 + place], mosaic, 4 * number + 1)
    _save(figure, out)


def _draw_panel(axis, rows, title, factor, series):
  for name, legend, colour in series:
    values = [(row['epoch'], factor * row[name]) for row in rows if name in row]
    if values:
      epochs, values = np.array(values).T
      smooth = max(len(values) // 100, 1)
      if smooth > 1:
        axis.plot(epochs, values, color=colour, linewidth=0.5, alpha=0.3)
        epochs, values = (np.convolve(part, np.full(smooth, 1 / smooth), 'valid')
                          for part in (epochs, values))
      axis.plot(epochs, values, color=colour, linewidth=1.4, label=legend,
                marker='o' if len(values) < 20 else '', markersize=3)
  if len(series) > 1:
    axis.legend(handlelength=1.2, borderaxespad=0.1, ncols=1 + (len(axis.lines) > 2), columnspacing=1)
  axis.set_title(title)
  axis.set_xlim(left=0)
  axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _draw_image(axis, image, colour):
  axis.imshow(image, interpolation='nearest')
  axis.grid(False)
  axis.set(xticks=[], yticks=[])
  axis.spines[:].set(visible=True, color=colour, linewidth=2)


def _view_colour(column):
  return _VIEW_COLOURS[(column - 1) % len(_VIEW_COLOURS)] if column else '#444444'


def _rectangle(shape, box, **style):
  """A box of fractions on an image drawn by imshow, whose first pixel's corner is at (-½, -½)."""
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
    axis.text(*patch.get_center(), number + 1, fontsize=7, **_LETTERED)


def _draw_mosaic(axis, mosaic, first):
  axis.set_axis_on()
  _draw_image(axis, mosaic, '#444444')
  side = len(mosaic)
  axis.axhline(side / 2 - 0.5, color='white', linewidth=0.8)
  axis.axvline(side / 2 - 0.5, color='white', linewidth=0.8)
  for quadrant in range(4):
    row, column = divmod(quadrant, 2)
    axis.text((column + 0.12) * side / 2, (row + 0.14) * side / 2, first + quadrant, fontsize=9, **_LETTERED)
  axis.set_xlabel(f'mosaic of {first}–{first + 3}', fontsize=7, labelpad=1)


def _embed(features, seed):
  # Take seconds to import, which every other command would pay.
  from sklearn.decomposition import PCA
  from sklearn.manifold import TSNE
  from threadpoolctl import threadpool_limits
  norms = np.linalg.norm(features, axis=1, keepdims=True)
  features = features / np.maximum(norms, np.finfo(np.float32).tiny)
  perplexity = min(30, (len(features) - 1) / 3)
  # On cores that others use too, OpenMP's threads wait for each other: five times as long with two.
  with threadpool_limits(1):
    reduced = PCA(min(50, *features.shape), random_state=seed).fit_transform(features)
    return TSNE(perplexity=perplexity, init='pca', random_state=seed).fit_transform(reduced)


def _draw_classes(axis, points, labels, class_names, size):
  handles = []
  for label, name in enumerate(class_names):
    colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
    marker = 'o^'[label // len(CLASS_COLOURS)]
    axis.scatter(*points[labels == label].T, s=size, color=colour, marker=marker, linewidths=0,
                 alpha=0.75)
    handles.append(Line2D([], [], linestyle='', marker=marker, color=colour, label=name))
  axis.legend(handles=handles, loc='center left', bbox_to_anchor=(1, 0.5), handletextpad=0.2)


def _save(figure, out, dpi=130):
  """Writes the picture in 256 dithered colours, at a third of the size."""
  drawn = io.BytesIO()
  figure.savefig(drawn, format='png', dpi=dpi)
  picture = Image.open(drawn).convert('RGB')
  palette = picture.quantize(256, method=Image.Quantize.FASTOCTREE)
  out.parent.mkdir(parents=True, exist_ok=True)
  picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(out, optimize=True)
