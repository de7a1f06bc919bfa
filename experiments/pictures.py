"""The figure of an experiment: one panel per measure, one dot per seed, the mean as a line or a mark."""
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from experiments.jobs import Experiment, Variant
from experiments.statistics import MEASURES, Figures

COLOURS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00')
MOST_PANELS = 4


def draw(experiment: Experiment, variants: Mapping[str, Variant], figures: Figures, path: Path) -> None:
  """Writes the figure: against the variants' places if they have them, otherwise one row per name.

  Args:
    experiment: the experiment to draw.
    variants: its grid; an experiment that pools draws all runs as points, one measure against another.
    figures: results of the finished runs, by variant and seed.
    path: where to write the figure.
  """
  matplotlib.use('Agg')
  measures = [name for name in experiment.measures
              if any(name in run for runs in figures.values() for run in runs.values())][:MOST_PANELS]
  if experiment.pools:
    _points(experiment.measures, figures, path)
  elif measures and all(variant.place is not None for variant in variants.values()):
    _lines(experiment, variants, figures, measures, path)
  elif measures:
    _rows(variants, figures, measures, path)


def _values(figures: Figures, name: str, measure: str) -> np.ndarray:
  runs = figures.get(name, {})
  return MEASURES[measure].factor * np.array([runs[seed][measure] for seed in sorted(runs)
                                              if measure in runs[seed]])


def _lines(experiment, variants, figures, measures, path) -> None:
  figure, axes = plt.subplots(1, len(measures), figsize=(4.2 * len(measures), 3.2), layout='constrained',
                              squeeze=False)
  lines = list(dict.fromkeys(variant.line for variant in variants.values()))
  for axis, measure in zip(axes[0], measures, strict=True):
    for index, line in enumerate(lines):
      colour = COLOURS[index % len(COLOURS)] if len(lines) <= len(COLOURS) else plt.cm.tab20(index % 20)
      found = [(variant.place, _values(figures, name, measure)) for name, variant in variants.items()
               if variant.line == line]
      found = sorted((place, values) for place, values in found if len(values))
      axis.plot([place for place, _ in found], [values.mean() for _, values in found], color=colour,
                label=line or None)
      for place, values in found:
        axis.plot([place] * len(values), values, '.', color=colour, markersize=5)
    if experiment.logarithmic:
      axis.set_xscale('log')
      places = sorted({variant.place for variant in variants.values()})
      axis.set_xticks(places, [f'{place:g}' for place in places])
      axis.minorticks_off()
    axis.set_xlabel(experiment.axis)
    axis.set_title(MEASURES[measure].title, fontsize=10)
    axis.grid(alpha=0.3)
  if len(lines) > 1:
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=8, loc='outside right upper')
  _save(figure, path)


def _rows(variants, figures, measures, path) -> None:
  names = [name for name in variants if figures.get(name)]
  figure, axes = plt.subplots(1, len(measures), figsize=(2.2 + 2.8 * len(measures), 1 + 0.32 * len(names)),
                              layout='constrained', sharey=True, squeeze=False)
  for axis, measure in zip(axes[0], measures, strict=True):
    for row, name in enumerate(names):
      values = _values(figures, name, measure)
      if len(values):
        axis.plot(values, [row] * len(values), '.', color=COLOURS[0], markersize=5, alpha=0.7)
        axis.plot(values.mean(), row, '|', color='black', markersize=14)
    axis.set_title(MEASURES[measure].title, fontsize=9)
    axis.grid(alpha=0.3)
  axes[0][0].set_yticks(range(len(names)), names, fontsize=8)
  axes[0][0].set_ylim(len(names) - 0.4, -0.6)
  _save(figure, path)


def _points(measures, figures, path) -> None:
  pairs = [(measures[0], measures[2]), (measures[1], measures[2]), (measures[1], measures[3])]
  figure, axes = plt.subplots(1, len(pairs), figsize=(4 * len(pairs), 3.2), layout='constrained')
  for axis, (first, second) in zip(axes, pairs, strict=True):
    both = [(run[first], run[second]) for runs in figures.values() for run in runs.values()
            if first in run and second in run]
    if both:
      across, up = np.array(both).T
      axis.plot(MEASURES[first].factor * across, MEASURES[second].factor * up, '.', color=COLOURS[0],
                markersize=4, alpha=0.6)
    axis.set_xlabel(MEASURES[first].title)
    axis.set_ylabel(MEASURES[second].title)
    axis.grid(alpha=0.3)
  _save(figure, path)


def _save(figure, path: Path) -> None:
  figure.savefig(path, dpi=110, metadata={'Software': None})
  plt.close(figure)
