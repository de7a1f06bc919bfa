"""Trains runs that are known to learn, to stand still or to collapse, and judges each at its half.

  python -m experiments.verdict SETS         runs what has no line in results.jsonl yet, writes results.md
  python -m experiments.verdict SETS --judge  judges the kept reports anew, after a change of the rule

SETS is the folder that experiments.sets wrote; a run is on one core. What a run is comes from its
held-out kNN accuracy, which the verdict never sees: it learned where that is above the random network's by
`CLEAR` standard errors of a difference, and stood still where its second half changed it by no more.
"""
import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from conic_jax import verdict
from experiments.recipe.trials import BASE, MOCO, PACED, SIMCLR

HERE = Path(__file__).parent
RESULTS = HERE / 'results.jsonl'
CLEAR, HELD_OUT = 2.0, 2000
SHORT = {**BASE, 'epochs': 12, 'knn_every': 6, 'linear.epochs': 1, 'log_every': 10, 'eval.baselines': True,
         'eval.linear': False}
CONSTANT = {'alpha_pace': 0.0}
# By name: config, set, settings, and the words that are right at half of the training.
RUNS: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
  'the paper’s settings': ('conic', 'cifar3k', {**CONSTANT, 'classifier.lr_scale': 1.0},
                           ('not learning yet', 'collapsing')),
  'the paper’s settings, full colours': (
    'conic', 'tiny5k', {**CONSTANT, 'classifier.lr_scale': 1.0, 'views.strength': 1.0, 'epochs': 8},
    ('not learning yet', 'collapsing')),
  'no rate': ('conic', 'cifar3k', {**PACED, 'optimizer.learning_rate': 1e-5}, ('not learning yet',)),
  'consistency alone': ('conic', 'cifar3k', {**CONSTANT, 'alpha': 100.0}, ('collapsing',)),
  'the recipe': ('conic', 'cifar3k', PACED, ('learning',)),
  'the recipe, other images': ('conic', 'tiny5k', {**PACED, 'epochs': 8}, ('learning',)),
  'SimCLR': ('simclr', 'cifar3k', SIMCLR, ('learning',)),
  'SimCLR at a high temperature': (
    'simclr', 'cifar3k', {'temperature': 50.0}, ('not learning yet', 'collapsing')),
  'fast rows, α from the start, full colours': (
    'conic', 'tiny5k', {**CONSTANT, 'classifier.lr_scale': 30.0, 'views.strength': 1.0, 'epochs': 8},
    ('not learning yet', 'collapsing', 'plateau')),
  'SimCLR, no rate after an eighth': (
    'simclr', 'cifar3k', {**SIMCLR, 'epochs': 24, 'knn_every': 12, 'optimizer.schedule': 'steps',
                          'optimizer.milestones': '(1,2,3)'}, ('plateau',)),
  'MoCo v2': ('moco_v2', 'cifar3k', MOCO, ('learning',)),
  'BYOL whose target is the network itself': (
    'byol', 'cifar3k', {'momentum.start': 0.0, 'momentum.schedule': 'constant', 'second_view.blur': 0.0,
                        'predictor.hidden': 512},
    ('not learning yet', 'collapsing'))}


def main() -> None:
  """Runs, judges, and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('sets', type=Path)
  parser.add_argument('--runs', type=Path, default=Path('runs/verdict'))
  parser.add_argument('--core', type=int, default=0, help='the core to run on')
  parser.add_argument('--judge', action='store_true', help='train nothing')
  args = parser.parse_args()
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {args.core})
  kept = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
  for index, name in enumerate(RUNS):
    if not args.judge and name not in [each['name'] for each in kept]:
      kept.append(run(args.sets, args.runs / str(index), name))
      RESULTS.write_text(''.join(json.dumps(each) + '\n' for each in kept))
  text = table(kept)
  (HERE / 'results.md').write_text(text)
  print(text)


def run(sets: Path, folder: Path, name: str) -> dict[str, Any]:
  """Trains one, and keeps the reports that the verdict reads."""
  config, data, changes, _ = RUNS[name]
  settings = {**SHORT, **changes}
  subprocess.run(
    [sys.executable, '-m', 'conic_jax.main', f'--config=configs/{config}.py:imagenet100',
     f'--config.data.dir={sets / data}', '--config.data.train=train', '--config.data.test=choose',
     f'--config.run={folder}', *(f'--config.{field}={value}' for field, value in settings.items())],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, check=True)
  reports = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  names = ('step', 'epoch', 'feature_std', 'loss_share', 'knn_top1', 'knn_top1_random', 'knn_top1_pixels')
  kept = [{field: value for field, value in report.items() if field in names or field.startswith('probe_')}
          for report in reports]
  written = json.loads((folder / 'config.json').read_text())
  judged_by = {field: value for field, value in written.items() if field not in ('run', 'data')}
  return {'name': name, 'settings': judged_by, 'reports': kept}


def table(kept: list[dict[str, Any]]) -> str:
  """A row for each run, and the share of right verdicts."""
  rows = ['Written by `python -m experiments.verdict`, on held-out training images.', '',
          '| run | images | kNN: random | pixels | at the end | verdict at half | at the end | right |',
          '| --- | --- | ---: | ---: | ---: | --- | --- | --- |']
  right = []
  for each in kept:
    _, data, _, words = RUNS[each['name']]
    reports, epochs = each['reports'], each['settings']['epochs']
    half = [report for report in reports if report['epoch'] <= epochs / 2]
    first, last = (word(part, each['settings']) for part in (half, reports))
    random, pixels = (next(report[f'knn_top1_{name}'] for report in reports if f'knn_top1_{name}' in report)
                      for name in ('random', 'pixels'))
    knn = [report['knn_top1'] for report in reports if 'knn_top1' in report]
    right.append(first in words and is_known(words, random, knn))
    rows.append(f'| {each["name"]} | {data} | {random:.1%} | {pixels:.1%} | {knn[-1]:.1%} | {first} '
                f'| {last} | {"yes" if right[-1] else "no"} |')
  return '\n'.join([*rows, '', f'Right at half of the training: {sum(right)} of {len(right)}.']) + '\n'


def is_known(words: tuple[str, ...], random: float, knn: list[float]) -> bool:
  """Whether the held-out accuracies say that the run is what its words claim."""
  if words == ('plateau',):
    return abs(knn[-1] - knn[0]) <= CLEAR * error(knn[0], knn[-1])
  return ('learning' in words) == (knn[-1] > random + CLEAR * error(random, knn[-1]))


def error(*shares: float) -> float:
  """The standard error of a difference of two accuracies on the held-out images."""
  return sum(share * (1 - share) / HELD_OUT for share in shares) ** 0.5


def word(reports: list[dict[str, Any]], settings: dict[str, Any]) -> str:
  """The verdict on these reports."""
  judged = verdict.judge(reports, settings)
  return judged.word if judged else ''


if __name__ == '__main__':
  main()
