"""Two-dimensional map of a run's features."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from conic_jax.visualise.projection import project
from conic_jax.visualise.style import BLUE, CLASS_COLOURS, drawing, save, shown_name

_LISTED_CLASSES = 20


def feature_map(features: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str],
                out: Path, seed: int) -> None:
  """Draws unit features in two dimensions: PCA to at most 50 dimensions, then t-SNE.

  Where t-SNE fails or makes no sense, the title says what is drawn instead.

  Args:
    features: [n, F]; rows that are not finite are left out.
    labels: integers [n]; None draws all points in one colour.
    class_names: names of the classes, listed next to the map if there are at most 20.
    out: file to write.
    seed: seed of PCA and t-SNE.

  Raises:
    UserError: if no row is finite.
  """
  projection = project(features, seed)
  points = projection.points
  labels = None if labels is None else labels[projection.rows]
  with drawing():
    width, height = np.ptp(points, axis=0)
    figure = Figure(figsize=(6.6, float(np.clip(5 * height / width if width else 5, 3, 7)) + 0.4),
                    layout='constrained')
    axis = figure.subplots()
    size = float(np.clip(12000 / len(points), 4, 24))
    if labels is None:
      axis.scatter(*points.T, s=size, color=BLUE, linewidths=0, alpha=0.7)
    elif len(class_names) > _LISTED_CLASSES:
      axis.scatter(*points.T, s=size, c=labels, cmap='turbo', linewidths=0, alpha=0.7)
    else:
      _draw_classes(axis, points, labels, class_names, size)
    images = f'{len(points):,} {"image" if len(points) == 1 else "images"}'
    title = f'{projection.method} of the features of {images}'
    axis.set(xticks=[], yticks=[], aspect='equal', title='\n'.join([title, *projection.notes]))
    axis.spines[:].set_visible(False)
    save(figure, out)


def _draw_classes(axis, points, labels, class_names, size):
  handles = []
  for label, name in enumerate(class_names):
    colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
    marker = 'o^'[label // len(CLASS_COLOURS)]
    axis.scatter(*points[labels == label].T, s=size, color=colour, marker=marker, linewidths=0,
                 alpha=0.75)
    handles.append(Line2D([], [], linestyle='', marker=marker, color=colour, label=shown_name(name)))
  axis.legend(handles=handles, loc='center left', bbox_to_anchor=(1, 0.5), handletextpad=0.2)
