"""Two-dimensional map of a run's features."""
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from conic_jax.measures import unit_rows
from conic_jax.visualise.style import BLUE, CLASS_COLOURS, STYLE, save

_LISTED_CLASSES = 20


def feature_map(features: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str],
                out: Path, seed: int) -> None:
  """Draws unit features in two dimensions: PCA to at most 50 dimensions, then t-SNE.

  Args:
    features: [n, F].
    labels: integers [n]; None draws all points in one colour.
    class_names: names of the classes, listed next to the map if there are at most 20.
    out: file to write.
    seed: seed of PCA and t-SNE.
  """
  points = _embed(features, seed)
  with matplotlib.rc_context(STYLE):
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
    save(figure, out)


def _embed(features, seed):
  # Imported here because they take seconds, which other commands should not pay for.
  from sklearn.decomposition import PCA
  from sklearn.manifold import TSNE
  from threadpoolctl import threadpool_limits
  features = unit_rows(features)
  perplexity = min(30, (len(features) - 1) / 3)
  # On shared cores OpenMP's threads wait for each other: two threads take five times as long.
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
