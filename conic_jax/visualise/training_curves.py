"""The curves of a run."""
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from conic_jax.errors import UserError
from conic_jax.visualise.style import BLUE, GREEN, GREY, ORANGE, drawing, save

# Title of the panel, factor on the values, and its series (name in the file, legend, colour).
PANELS = (
    ('Loss (nats)', 1, (('loss', 'total', BLUE), ('loss_instance', 'instance', ORANGE),
                        ('loss_contrast', 'contrast', ORANGE), ('loss_single', 'single', ORANGE),
                        ('loss_multi', 'mosaics', GREEN), ('loss_cell', 'cells', '#CC79A7'))),
    ('Consistency loss', 1, (('loss_consistency', '', GREEN),)),
    ('Instance top-1 (%)', 100, (('instance_top1', '', BLUE),)),
    ('Own key nearest (%)', 100, (('contrast_top1', '', BLUE),)),
    ('Own other view nearest (%)', 100, (('probe_instance_top1', '', BLUE),)),
    ('Effective rank of features', 1, (('probe_rankme', '', BLUE),)),
    ('Effective rank against views (LiDAR)', 1, (('probe_lidar', '', BLUE),)),
    ('kNN top-1 (%)', 100, (('knn_top1', '', ORANGE),)),
    ('Alignment (lower: views closer)', 1, (('alignment', '', BLUE),)),
    ('Uniformity (lower: more spread)', 1, (('uniformity', '', BLUE),)),
    ('Feature standard deviation', 1, (('feature_std', 'head', BLUE),
                                       ('probe_std', 'encoder', ORANGE))),
    ('Learning rate', 1, (('learning_rate', '', GREY),)),
)
# Baselines, measured once: suffix of the name in the file, legend, colour.
BASELINES = (('random', 'random network', '#888888'), ('pixels', 'raw pixels', GREY))
LARGEST = 1e30  # Axes overflow some way above.
OWN = 'this run'  # Legend of an unnamed series next to its baselines.


def loss_curves(metrics: Path, out: Path) -> None:
  """Draws the curves of a run as small multiples over the epochs.

  Args:
    metrics: file with one JSON object per line; each has 'epoch' and some of 'loss', 'loss_instance',
      'loss_consistency', 'alignment', 'uniformity', 'instance_top1', 'knn_top1', 'feature_std' and
      'learning_rate'. Figures that no line has get no panel. Baselines, whose names end in '_random' or
      '_pixels', such as 'knn_top1_random', are drawn in the same panel as dashed lines.
    out: file to write.

  Raises:
    UserError: if the file has none of these figures.
  """
  rows = [json.loads(line) for line in metrics.read_text().splitlines() if line.strip()]
  rows = [{name: _drawable(value) for name, value in row.items()} for row in rows]
  names = {name for row in rows for name in row}
  panels = [panel for panel in PANELS if any(series[0] in names for series in panel[2])]
  if not panels:
    raise UserError(f'{metrics} holds no reports yet: let the run reach its first report.')
  columns = min(len(panels), 4)
  lines = -(-len(panels) // columns)
  with drawing():
    figure = Figure(figsize=(3 * columns, 2.3 * lines), layout='constrained')
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, axis in zip(panels, axes, strict=False):
      _draw_panel(axis, rows, *panel)
    for axis in axes[:len(panels)][-columns:]:
      axis.set_xlabel('epoch')
    for axis in axes[len(panels):]:
      axis.set_axis_off()
    save(figure, out)


def baselines(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[str, str, float]]:
  """Legend, colour and latest value that can be drawn of each baseline of a figure in the reports."""
  found = []
  for suffix, legend, colour in BASELINES:
    values = [value for row in rows if abs(value := row.get(f'{name}_{suffix}', math.nan)) < LARGEST]
    if values:
      found.append((legend, colour, values[-1]))
  return found


def _drawable(value):
  """The value, or NaN, which leaves a gap, for a number that no axis can reach."""
  return value if not isinstance(value, (int, float)) or abs(value) < LARGEST else math.nan


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
      axis.plot(epochs, values, color=colour, linewidth=1.4, label=legend or OWN,
                marker='o' if len(values) < 20 else '', markersize=3)
  drawn = {name for name, _, _ in series if any(name in row for row in rows)}
  beside = [line for name in sorted(drawn) for line in baselines(rows, name)]
  for legend, colour, value in beside:
    axis.axhline(factor * value, color=colour, linewidth=1.2, linestyle='--', label=legend)
  if len(series) > 1 or beside:
    axis.legend(handlelength=1.2, borderaxespad=0.1, columnspacing=1, fontsize=8 if beside else None,
                labelspacing=0.2, ncols=1 + (len(axis.lines) > 2 + bool(beside)),
                frameon=True, edgecolor='none', framealpha=0.85)  # Over a line it can still be read.
  axis.set_title(title)
  axis.set_xlim(left=0)
  axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
