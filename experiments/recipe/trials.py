"""The trials that the rules of conic_jax/recipe were chosen by, on held-out training images.

  python -m experiments.recipe.trials SETS [NAME …]

SETS is the folder that experiments.sets wrote. Without names every trial runs that has no line in
trials.jsonl yet. All settings are given, none is left to the recipe; a run is on one core.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / 'trials.jsonl'
# A network for a minute of a CPU, and what every trial has unless it says otherwise.
BASE = {
  'views.size': 48, 'views.strength': 0.5, 'views.blur': 0.0, 'views.crop': '(0.15,1.0)',
  'encoder.name': 'resnet18', 'encoder.blocks': '(1,1,1)', 'encoder.width': 0.5, 'head.hidden': 512,
  'batch_size': 128, 'epochs': 20, 'optimizer.learning_rate': 0.06, 'optimizer.warmup_epochs': 1,
  'optimizer.per_epoch': False, 'log_every': 100, 'checkpoint.every_epochs': 1000, 'knn_every': 0,
  'eval.baselines': False, 'eval.batch_size': 128, 'eval.resize': 48, 'linear.epochs': 10,
  'linear.batch_size': 128, 'linear.learning_rates': '(0.1,0.3,1.0,3.0,10.0)', 'linear.schedule': 'cosine'}
MEASURES = ('loss_instance', 'instance_top1', 'feature_std')
PACED = {'alpha_pace': 4.0, 'classifier.lr_scale': 10.0}
AS_THE_PAPER = {'alpha_pace': 0.0, 'classifier.lr_scale': 1.0, 'optimizer.warmup_epochs': 0}
SIMCLR = {'temperature': 0.2}
MOCO = {'queue.size': 1024, 'momentum.start': 0.99}
OF_A_THOUSAND = {'epochs': 40, 'eval.k': '(1,)', 'linear.epochs': 5, 'batch_size': 64,
                 'optimizer.learning_rate': 0.042}
PHOTOS_NETWORK = {'views.size': 32, 'eval.resize': 32, 'encoder.blocks': '(2,2)', 'encoder.width': 0.75}
# Trials by name: config, set, and what differs from BASE (and, of ConIC, from PACED).
TRIALS: dict[str, tuple[str, str, dict[str, Any]]] = {
  'recipe': ('conic', 'cifar3k', {'eval.baselines': True}),
  'rows three times as fast': ('conic', 'cifar3k', {'classifier.lr_scale': 30.0}),
  'higher rate, rows the same': ('conic', 'cifar3k', {
    'optimizer.learning_rate': 0.2, 'classifier.lr_scale': 3.0}),
  'half the batch': ('conic', 'cifar3k', {'batch_size': 64}),
  'α at half the fall': ('conic', 'cifar3k', {'alpha_pace': 8.0}),
  'warmer softmax': ('conic', 'cifar3k', {'temperature': 0.2}),
  'network of the photographs': ('conic', 'cifar3k', PHOTOS_NETWORK),
  'SimCLR': ('simclr', 'cifar3k', SIMCLR),
  'recipe, 64 pixels': ('conic', 'tiny5k', {'epochs': 12, 'eval.baselines': True, 'linear.epochs': 5}),
  'recipe, photographs': ('conic', 'imagenet1k', {**OF_A_THOUSAND, 'eval.baselines': True}),
  'SimCLR, 64 pixels': ('simclr', 'tiny5k', {**SIMCLR, 'epochs': 12, 'linear.epochs': 5}),
  'without α': ('conic', 'cifar3k', {'alpha': 0.0}),
  'MoCo v2': ('moco_v2', 'cifar3k', MOCO),
  'larger crops': ('conic', 'cifar3k', {'views.crop': '(0.3,1.0)'}),
  'as the paper': ('conic', 'cifar3k', AS_THE_PAPER)}


def main() -> None:
  """Runs the trials that are asked for or missing."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('sets', type=Path)
  parser.add_argument('names', nargs='*')
  parser.add_argument('--runs', type=Path, default=Path('runs/trials'))
  parser.add_argument('--core', type=int, default=0, help='the core to run on')
  args = parser.parse_args()
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {args.core})
  lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
  done = {json.loads(line)['name'] for line in lines}
  for name in args.names or [name for name in TRIALS if name not in done]:
    run(args.sets, args.runs / name, name)


def run(sets: Path, folder: Path, name: str) -> None:
  """One trial, in a process of its own, and its line."""
  config, data, changes = TRIALS[name]
  settings = {**BASE, **(PACED if config == 'conic' else {}), **changes}
  command = [sys.executable, '-m', 'conic_jax.main', f'--config=configs/{config}.py:imagenet100',
             f'--config.data.dir={sets / data}', '--config.data.train=train', '--config.data.test=choose',
             f'--config.run={folder}', *(f'--config.{field}={value}' for field, value in settings.items())]
  begun = time.time()
  subprocess.run(command, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, check=True)
  reports = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  last = next(report for report in reversed(reports) if 'loss' in report)
  line = {'name': name, 'config': config, 'set': data, 'settings': changes,
          'seconds': round(time.time() - begun), **figures(json.loads((folder / 'summary.json').read_text())),
          **{field: last[field] for field in MEASURES if field in last}}
  with RESULTS.open('a') as file:
    file.write(json.dumps(line) + '\n')


def figures(summary: dict[str, Any]) -> dict[str, Any]:
  """kNN and linear accuracy, of the baselines too where they were measured."""
  names = ('knn_top1', 'linear_top1')
  kept = {name: summary[name] for name in names if name in summary}
  return kept | {where: {name: summary[where][name] for name in names}
                 for where in ('pixels', 'random_init') if where in summary}


if __name__ == '__main__':
  main()
