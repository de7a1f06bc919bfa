"""The trials that the rules of conic_jax/recipe were chosen by: held-out training images, never the test images.

  python -m experiments.recipe.trials SETS [NAME …] --workers=1 --worker=0

SETS is the folder that experiments/recipe/sets.py wrote. Without names every trial is run that has no line in
trials.jsonl yet. A trial is the command line of a user; it runs on one core.
"""
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / 'trials.jsonl'
FIGURES = ('knn_top1', 'linear_top1')

# What every trial has unless it says otherwise.
BASE = {
  'views.size': 48, 'views.strength': 0.5, 'views.blur': 0.0, 'views.crop': '(0.15,1.0)',
  'encoder.name': 'resnet18', 'encoder.blocks': '(1,1,1)', 'encoder.width': 0.5, 'head.hidden': 512,
  'batch_size': 128, 'epochs': 20, 'optimizer.warmup_epochs': 1, 'log_every': 100, 'checkpoint.every_epochs': 1000,
  'knn_every': 0, 'eval.baselines': False, 'eval.batch_size': 128, 'eval.resize': 48, 'linear.epochs': 10,
  'linear.batch_size': 128, 'linear.learning_rates': '(0.1,0.3,1.0,3.0,10.0)'}
PACED = {'alpha_pace': 4.0, 'classifier.lr_scale': 10.0}


def conic(data: str, seed: int = 0, **changes: Any) -> dict[str, Any]:
  """A trial of ConIC on a set."""
  return {'config': 'conic', 'data': data, 'seed': seed, 'settings': {**BASE, **PACED, **changes}}


TRIALS: dict[str, dict[str, Any]] = {}
