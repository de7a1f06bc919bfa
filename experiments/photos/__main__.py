"""The quick start against its own α = 0, over seeds.

  python -m experiments.photos             runs what has no line in results.jsonl yet, writes results.md

A run is `make quickstart` with a seed and one setting changed, on one core.
"""
import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from benchmarks.hardware import cpu_name
from experiments.recipe.__main__ import core_minutes

HERE = Path(__file__).parent
RESULTS = HERE / 'results.jsonl'
VARIANTS: dict[str, dict[str, Any]] = {'the quick start': {}, 'α = 0': {'alpha': 0.0}}
FIGURES = (('knn_top1', 'kNN'), ('linear_top1', 'linear'))
SURE = 0.05


def main() -> None:
  """Does the runs that are missing and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--runs', type=Path, default=Path('runs/quickstart'))
  parser.add_argument('--core', type=int, default=0, help='the core to run on')
  args = parser.parse_args()
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {args.core})
  lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
  for seed in range(args.seeds):
    for index, name in enumerate(VARIANTS):
      if (name, seed) not in [(line['variant'], line['seed']) for line in lines]:
        lines.append(run(args.runs / f'{index}-{seed}', name, seed))
        RESULTS.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  text = table(lines)
  (HERE / 'results.md').write_text(text)
  print(text)


def run(folder: Path, name: str, seed: int) -> dict[str, Any]:
  """One run, in a process of its own, and its line."""
  before = core_minutes()
  subprocess.run(
    [sys.executable, '-m', 'conic_jax.main', '--config=configs/conic.py:photos', f'--config.run={folder}',
     f'--config.seed={seed}', *(f'--config.{field}={value}' for field, value in VARIANTS[name].items())],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, check=True)
  summary, config = (json.loads((folder / file).read_text()) for file in ('summary.json', 'config.json'))
  kept = lambda figures: {key: figures[key] for key, _ in FIGURES}
  return {'variant': name, 'seed': seed, 'core_minutes': round(core_minutes() - before, 1), **kept(summary),
          'random_init': kept(summary['random_init']), 'pixels': kept(summary['pixels']),
          'verdict': summary.get('verdict', ''), 'versions': config['versions']}


def table(lines: list[dict[str, Any]]) -> str:
  """Means with the seeds' spread, and what a paired test over the seeds says of the differences."""
  first, *others = VARIANTS
  rows = [f'Measured on one core of {cpu_name()} (jax {lines[0]["versions"]["jax"]}) by `python -m '
          'experiments.photos`: 1,960 held-out patches; mean and standard deviation over the seeds, in %.',
          '', '| run | seeds | minutes of a core | kNN | linear |', '| --- | ---: | ---: | ---: | ---: |']
  for name in ('pixels', 'random_init'):
    of_first = [line[name] for line in lines if line['variant'] == first]
    title = {'pixels': 'raw pixels', 'random_init': 'random network'}[name]
    rows.append(f'| {title} | {len(of_first)} | | {_spread(of_first, "knn_top1")} '
                f'| {_spread(of_first, "linear_top1")} |')
  for name in VARIANTS:
    runs = [line for line in lines if line['variant'] == name]
    minutes = [line['core_minutes'] for line in runs if 'core_minutes' in line]
    mean = f'{np.mean(minutes):.1f}' if minutes else '–'
    rows.append(f'| {name} | {len(runs)} | {mean} | {_spread(runs, "knn_top1")} '
                f'| {_spread(runs, "linear_top1")} |')
  rows += ['', *(difference(lines, first, other, *figure) for other in others for figure in FIGURES)]
  return '\n'.join(rows) + '\n'


def difference(lines: list[dict[str, Any]], first: str, other: str, key: str, title: str) -> str:
  """A sentence on a figure of two variants: a paired test over the seeds that both have."""
  found = {name: {line['seed']: 100 * line[key] for line in lines if line['variant'] == name}
           for name in (first, other)}
  seeds = sorted(found[first].keys() & found[other].keys())
  gains = np.array([found[first][seed] - found[other][seed] for seed in seeds])
  if len(seeds) < 3:
    return f'- {title}, {first} against {other}: not decided, fewer than three seeds.'
  chance = scipy.stats.ttest_1samp(gains, 0).pvalue
  said = 'not decided at this scale' if chance > SURE else 'better' if gains.mean() > 0 else 'worse'
  return (f'- {title}, {first} against {other}: {said}; {gains.mean():+.1f} ± {gains.std(ddof=1):.1f} '
          f'points, p = {chance:.2f}.')


def _spread(lines: list[dict[str, Any]], key: str) -> str:
  numbers = [100 * line[key] for line in lines]
  deviation = f' ± {np.std(numbers, ddof=1):.1f}' if len(set(numbers)) > 1 else ''
  return f'{np.mean(numbers):.1f}{deviation}'


if __name__ == '__main__':
  main()
