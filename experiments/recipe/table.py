"""Writes results.md, accuracy.png and the table of docs/recipe.md from the lines of the recipe's runs.

  python -m experiments.recipe.table
"""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from experiments import jobs
from experiments.recipe import EPOCHS, EXPERIMENT, METHODS
from experiments.scales import SCALES
from experiments.summary import between

HERE = Path(__file__).parent
PAGE, MARKS = HERE.parent.parent / 'docs' / 'recipe.md', ('<!-- recipe -->', '<!-- /recipe -->')
FIGURES = (('knn_top1', 'kNN'), ('linear_top1', 'linear'))
# What comes before a figure's name.
ENCODERS = ('pixels_', 'random_init_', '')
IN_WORDS = {'photographs': 'patches of photographs, 48×48', 'cifar3k': 'of CIFAR-10, 32×32',
            'cifar20k': 'of CIFAR-10, 32×32', 'tiny5k': 'of Tiny-ImageNet, 100 classes, 64×64',
            'imagenet1k': 'ImageNet photographs: a crop finds its own', 'digits': 'digits, 8×8, grey'}
COLOURS = {'raw pixels': '#999999', 'random network': '#bbbbbb', 'ConIC': '#0072B2', 'SimCLR': '#E69F00',
           'MoCo v2': '#009E73'}

# By set and method: the lines of its seeds.
Runs = dict[tuple[str, str], list[dict[str, Any]]]


def main() -> None:
  """Reads all lines and writes what can be made of them."""
  runs = by_set_and_method(jobs.lines_of(EXPERIMENT, SCALES['cpu'], {}, jobs.read('cpu')))
  (HERE / 'results.md').write_text(table(runs))
  PAGE.write_text(between(PAGE.read_text(), MARKS, short_table(runs)))
  draw(runs, HERE / 'accuracy.png')


def by_set_and_method(lines: Mapping[str, Mapping[int, dict[str, Any]]]) -> Runs:
  """The lines of every variant, 'SET, METHOD'."""
  runs: Runs = {}
  for name, seeds in lines.items():
    data, _, method = name.partition(', ')
    runs[data, method] = list(seeds.values())
  return runs


def short_table(runs: Runs) -> str:
  """The table of the first page: ConIC alone."""
  rows = ['| images | epochs | minutes | kNN: raw pixels | random network | ConIC | linear: raw pixels '
          '| random network | ConIC |', '| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |']
  ours = {name: runs[name, 'ConIC'] for name in IN_WORDS if (name, 'ConIC') in runs}
  for name, lines in ours.items():
    images = lines[0]['figures']['num_images']
    cells = [f'{images:,} {IN_WORDS[name]}', str(EPOCHS[name]), minutes(lines)]
    rows.append(f'| {" | ".join([*cells, *accuracies(lines)])} |')
  seeds = {len(lines) for lines in ours.values()}
  many = f'{min(seeds)} seeds' if len(seeds) == 1 else f'{min(seeds)} to {max(seeds)} seeds'
  return '\n'.join([*rows, '', f'Accuracy in % on held-out images, mean ± deviation over {many}; '
                               f'one core of {cpus(ours.values())}.'])


def table(runs: Runs) -> str:
  """A row for each set and method: the seeds' mean and spread, the baselines, and whether it holds."""
  rows = [f'Measured on one core of {cpus(runs.values())} by `python -m experiments.run recipe`, written by '
          '`python -m experiments.recipe.table`.',
          'Mean and standard deviation over the seeds, in per cent. A row *holds* where the lowest of its '
          'seeds is above raw pixels and above the highest of the random network.', '',
          '| images | method | seeds | epochs | minutes | kNN: pixels | random | pretrained | linear: pixels '
          '| random | pretrained | holds | verdicts |',
          '| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |']
  rows += [row(name, method, runs[name, method]) for name in EPOCHS for method in METHODS.values()
           if (name, method) in runs]
  return '\n'.join(rows) + '\n'


def row(name: str, method: str, lines: Sequence[dict[str, Any]]) -> str:
  """One line of the table."""
  cells = [f'{name} ({lines[0]["figures"]["num_images"]:,})', method, str(len(lines)), str(EPOCHS[name]),
           minutes(lines), *accuracies(lines)]
  holds = {}
  for figure, title in FIGURES:
    pixels, random, ours = (values(lines, where + figure) for where in ENCODERS)
    if ours:
      holds[title] = min(ours) > max(pixels) and min(ours) > max(random)
  good = [title for title, holding in holds.items() if holding]
  cells += ['yes' if all(holds.values()) else f'{good[0]} alone' if good else 'no',
            ', '.join(dict.fromkeys(line['figures']['verdict'] for line in lines))]
  return f'| {" | ".join(cells)} |'


def minutes(lines: Sequence[dict[str, Any]]) -> str:
  """Minutes of a core, evaluation included, of the runs that have them."""
  known = [line['core_seconds'] / 60 for line in lines if 'core_seconds' in line]
  return f'{np.mean(known):.0f}' if known else '–'


def accuracies(lines: Sequence[dict[str, Any]]) -> list[str]:
  """Cells of kNN and linear accuracy: raw pixels, the random network, the pretrained one."""
  cells = []
  for figure, _ in FIGURES:
    pixels, random, ours = (values(lines, where + figure) for where in ENCODERS)
    cells += [spread(pixels), spread(random), f'**{spread(ours)}**' if ours else '–']
  return cells


def values(lines: Sequence[dict[str, Any]], figure: str) -> list[float]:
  """A figure of every run that has it, in per cent."""
  return [100 * line['figures'][figure] for line in lines if figure in line['figures']]


def spread(numbers: list[float]) -> str:
  """Mean ± standard deviation, of one the number alone; where all are equal no deviation; – for none."""
  if not numbers:
    return '–'
  if len(numbers) == 1 or max(numbers) == min(numbers):
    return f'{numbers[0]:.1f}'
  return f'{np.mean(numbers):.1f} ± {np.std(numbers, ddof=1):.1f}'


def cpus(groups) -> str:
  """The processors that runs were on."""
  return ', '.join(sorted({line['cpu'] for lines in groups for line in lines}))


def draw(runs: Runs, path: Path) -> None:
  """A panel for each figure, a group of bars for each set, a dot for each seed."""
  matplotlib.use('Agg')
  names = [name for name in EPOCHS if any(name == data for data, _ in runs)]
  figure, axes = plt.subplots(1, 2, figsize=(11, 3.2), layout='constrained')
  for axis, (key, title) in zip(axes, FIGURES, strict=True):
    for column, name in enumerate(names):
      lines = [line for (data, _), group in runs.items() if data == name for line in group]
      bars = {'raw pixels': values(lines, f'pixels_{key}'),
              'random network': values(lines, f'random_init_{key}')}
      bars |= {method: values(runs.get((name, method), []), key) for method in METHODS.values()}
      for place, (kind, numbers) in enumerate(bars.items()):
        if numbers:
          at = column + 0.8 * (place + 0.5) / len(bars) - 0.4
          axis.bar(at, np.mean(numbers), 0.72 / len(bars), color=COLOURS[kind],
                   label=kind if column == 0 else None)
          axis.plot([at] * len(numbers), numbers, '.', color='black', markersize=3)
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.set_title(f'{title}, % of held-out images')
    axis.grid(axis='y', alpha=0.3)
  axes[0].legend(fontsize=7)
  figure.savefig(path, dpi=110, metadata={'Software': None})
  plt.close(figure)


if __name__ == '__main__':
  main()
