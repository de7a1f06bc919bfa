"""Writes results.md, accuracy.png and README's table from results.jsonl, and trials.md from trials.jsonl.

  python -m experiments.recipe.table
"""
import collections
import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.hardware import cpu_name
from experiments.recipe import trials
from experiments.recipe.__main__ import EPOCHS, RESULTS

HERE = Path(__file__).parent
README, MARKS = HERE.parent.parent / 'README.md', ('<!-- recipe -->', '<!-- /recipe -->')
FIGURES = (('knn_top1', 'kNN'), ('linear_top1', 'linear'))
ENCODERS = ('pixels', 'random_init', 'pretrained')
IN_WORDS = {'photographs': 'patches of photographs, 48×48', 'cifar3k': 'of CIFAR-10, 32×32',
            'cifar20k': 'of CIFAR-10, 32×32', 'tiny5k': 'of Tiny-ImageNet, 100 classes, 64×64',
            'imagenet1k': 'ImageNet photographs: a crop finds its own', 'digits': 'digits, 8×8, grey'}
COLOURS = {'pixels': '#999999', 'random_init': '#bbbbbb', 'conic': '#0072B2', 'simclr': '#E69F00',
           'moco_v2': '#009E73'}


def main() -> None:
  """Reads all lines and writes what can be made of them."""
  if RESULTS.exists():
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    (HERE / 'results.md').write_text(table(lines))
    README.write_text(with_table(README.read_text(), short_table(lines)))
    draw(lines, HERE / 'accuracy.png')
  if trials.RESULTS.exists():
    lines = [json.loads(line) for line in trials.RESULTS.read_text().splitlines()]
    (HERE / 'trials.md').write_text(table_of_trials(lines))


def short_table(lines: list[dict[str, Any]]) -> str:
  """The table of the first page: ConIC alone."""
  rows = ['| images | epochs | minutes | kNN: raw pixels | random network | ConIC | linear: raw pixels '
          '| random network | ConIC |', '| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |']
  for name, words in IN_WORDS.items():
    if runs := [line for line in lines if (line['set'], line['method']) == (name, 'conic')]:
      cells = [f'{runs[0]["num_images"]:,} {words}', str(runs[0]['epochs']), minutes(runs)]
      rows.append(f'| {" | ".join([*cells, *accuracies(runs)])} |')
  seeds = collections.Counter(line['set'] for line in lines if line['method'] == 'conic').values()
  many = 'one seed' if max(seeds) == 1 else f'{min(seeds)} to {max(seeds)} seeds'
  return '\n'.join([*rows, '', f'Accuracy in % on held-out images; {many} a row; one core of {cpu_name()}.'])


def with_table(page: str, table: str) -> str:
  """The page with the table between its marks."""
  before, rest = page.split(MARKS[0])
  return f'{before}{MARKS[0]}\n{table}\n{MARKS[1]}{rest.split(MARKS[1])[1]}'


def table_of_trials(lines: list[dict[str, Any]]) -> str:
  """A row for each trial, by set, the best kNN first."""
  rows = ['Written by `python -m experiments.recipe.table` from what `python -m experiments.recipe.trials` '
          'left: one seed each, on held-out training images, one core. Settings are those that differ from '
          '`BASE` and, of ConIC, from `PACED`.', '',
          '| trial | images | config | settings | kNN | linear | instance loss | feature std |',
          '| --- | --- | --- | --- | ---: | ---: | ---: | ---: |']
  order = {name: index for index, name in enumerate(EPOCHS)}
  for line in sorted(lines, key=lambda line: (order[line['set']], -line['knn_top1'])):
    settings = ', '.join(f'{field} {value}' for field, value in line['settings'].items()) or '–'
    measured = [f'{line[name]:.2f}' if name in line else '' for name in ('loss_instance', 'feature_std')]
    linear = f'{line["linear_top1"]:.1%}' if 'linear_top1' in line else ''
    rows.append(f'| {line["name"]} | {line["set"]} | {line["config"]} | {settings} | {line["knn_top1"]:.1%} '
                f'| {linear} | {" | ".join(measured)} |')
  for line in lines:
    if 'pixels' in line:
      rows.append(f'\nOf {line["set"]}: raw pixels {line["pixels"]["knn_top1"]:.1%} kNN, '
                  f'{line["pixels"]["linear_top1"]:.1%} linear; the network at random '
                  f'{line["random_init"]["knn_top1"]:.1%} and {line["random_init"]["linear_top1"]:.1%}.')
  return '\n'.join(rows) + '\n'


def table(lines: list[dict[str, Any]]) -> str:
  """A row for each set and method: the seeds' mean and spread, the baselines, and whether it holds."""
  versions = lines[0]['versions']
  rows = [f'Measured on one core of {cpu_name()} (jax {versions["jax"]}) by `python -m experiments.recipe`.',
          'Mean and standard deviation over the seeds, in per cent. A row *holds* where the lowest of its '
          'seeds is above raw pixels and above the highest of the random network.', '',
          '| images | method | seeds | epochs | minutes | kNN: pixels | random | pretrained | linear: pixels '
          '| random | pretrained | holds | verdicts |',
          '| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |']
  for name in EPOCHS:
    for method in dict.fromkeys(line['method'] for line in lines):
      if runs := [line for line in lines if (line['set'], line['method']) == (name, method)]:
        rows.append(row(name, method, runs))
  return '\n'.join(rows) + '\n'


def row(name: str, method: str, runs: list[dict[str, Any]]) -> str:
  """One line of the table."""
  cells = [f'{name} ({runs[0]["num_images"]:,})', method, str(len(runs)), str(runs[0]['epochs']),
           minutes(runs)]
  holds = {}
  for figure, title in FIGURES:
    pixels, random, ours = (values(runs, where, figure) for where in ENCODERS)
    if ours:
      holds[title] = min(ours) > max(pixels) and min(ours) > max(random)
  cells += accuracies(runs)
  good = [title for title, holding in holds.items() if holding]
  cells += ['yes' if all(holds.values()) else f'{good[0]} alone' if good else 'no',
            ', '.join(dict.fromkeys(run['verdict'] for run in runs))]
  return f'| {" | ".join(cells)} |'


def minutes(runs: list[dict[str, Any]]) -> str:
  """Minutes of a core, evaluation included, of the runs that have them."""
  known = [run['minutes'] for run in runs if 'minutes' in run]
  return f'{np.mean(known):.0f}' if known else '–'


def accuracies(runs: list[dict[str, Any]]) -> list[str]:
  """Cells of kNN and linear accuracy: raw pixels, the random network, the pretrained one."""
  cells = []
  for figure, _ in FIGURES:
    pixels, random, ours = (values(runs, where, figure) for where in ENCODERS)
    cells += [spread(pixels), spread(random), f'**{spread(ours)}**' if ours else '–']
  return cells


def values(runs: list[dict[str, Any]], where: str, figure: str) -> list[float]:
  """A figure of every run that has it, in per cent."""
  return [100 * run[where][figure] for run in runs if figure in run[where]]


def spread(numbers: list[float]) -> str:
  """Mean ± standard deviation, of one the number alone; where all are equal no deviation; – for none."""
  if not numbers:
    return '–'
  if len(numbers) == 1 or max(numbers) == min(numbers):
    return f'{numbers[0]:.1f}'
  return f'{np.mean(numbers):.1f} ± {np.std(numbers, ddof=1):.1f}'


def draw(lines: list[dict[str, Any]], path: Path) -> None:
  """A panel for each figure, a group of bars for each set, a dot for each seed."""
  matplotlib.use('Agg')
  names = [name for name in EPOCHS if any(line['set'] == name for line in lines)]
  methods = list(dict.fromkeys(line['method'] for line in lines))
  figure, axes = plt.subplots(1, 2, figsize=(11, 3.2), layout='constrained')
  for axis, (key, title) in zip(axes, FIGURES):
    for column, name in enumerate(names):
      of_set = [line for line in lines if line['set'] == name]
      bars = [('pixels', values(of_set, 'pixels', key)), ('random_init', values(of_set, 'random_init', key))]
      bars += [(method, values([line for line in of_set if line['method'] == method], 'pretrained', key))
               for method in methods]
      for place, (kind, numbers) in enumerate(bars):
        if numbers:
          at = column + 0.8 * (place + 0.5) / len(bars) - 0.4
          axis.bar(at, np.mean(numbers), 0.72 / len(bars), color=COLOURS.get(kind, '#CC79A7'),
                   label=kind.replace('_init', ' network') if column == 0 else None)
          axis.plot([at] * len(numbers), numbers, '.', color='black', markersize=3)
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.set_title(f'{title}, % of held-out images')
    axis.grid(axis='y', alpha=0.3)
  axes[0].legend(fontsize=7)
  figure.savefig(path, dpi=110)
  plt.close(figure)


if __name__ == '__main__':
  main()
