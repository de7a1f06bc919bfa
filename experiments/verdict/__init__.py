"""Runs that are known to learn, to stand still or to collapse, for the verdict to be judged by."""
from collections.abc import Mapping
from typing import Any

from experiments.jobs import Experiment, Scale, Step, Variant
from experiments.recipe_trials import BASE, MOCO, PACED, SIMCLR

SHORT = {**BASE, 'epochs': 12, 'knn_every': 6, 'linear.epochs': 1, 'log_every': 10, 'eval.baselines': True,
         'eval.linear': False}
CONSTANT = {'alpha_pace': 0.0}
LEARNS, STUCK, COLLAPSES, STANDS = 'learning', 'not learning yet', 'collapsing', 'plateau'
# By name: config, set, settings, and the words that are right at half of the training.
RUNS: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
  'the paper’s settings': ('conic', 'cifar3k', {**CONSTANT, 'classifier.lr_scale': 1.0}, (STUCK, COLLAPSES)),
  'the paper’s settings, full colours': (
    'conic', 'tiny5k', {**CONSTANT, 'classifier.lr_scale': 1.0, 'views.strength': 1.0, 'epochs': 8},
    (STUCK, COLLAPSES)),
  'fast rows, α from the start, full colours': (
    'conic', 'tiny5k', {**CONSTANT, 'classifier.lr_scale': 30.0, 'views.strength': 1.0, 'epochs': 8},
    (STUCK, COLLAPSES, STANDS)),
  'no rate': ('conic', 'cifar3k', {**PACED, 'optimizer.learning_rate': 1e-5}, (STUCK,)),
  'consistency alone': ('conic', 'cifar3k', {**CONSTANT, 'alpha': 100.0}, (COLLAPSES,)),
  'the recipe': ('conic', 'cifar3k', PACED, (LEARNS,)),
  'the recipe, other images': ('conic', 'tiny5k', {**PACED, 'epochs': 8}, (LEARNS,)),
  'SimCLR': ('simclr', 'cifar3k', SIMCLR, (LEARNS,)),
  'SimCLR at a high temperature': ('simclr', 'cifar3k', {'temperature': 50.0}, (STUCK, COLLAPSES)),
  'SimCLR, no rate after an eighth': (
    'simclr', 'cifar3k', {**SIMCLR, 'epochs': 24, 'knn_every': 12, 'optimizer.schedule': 'steps',
                          'optimizer.milestones': [1, 2, 3]}, (STANDS,)),
  'MoCo v2, no rate after an eighth': (
    'moco_v2', 'cifar3k', {**MOCO, 'epochs': 24, 'knn_every': 12, 'optimizer.schedule': 'steps',
                           'optimizer.milestones': [1, 2, 3]}, (STANDS,)),
  'MoCo v2': ('moco_v2', 'cifar3k', MOCO, (LEARNS,)),
  'BYOL whose target is the network itself': (
    'byol', 'cifar3k', {'momentum.start': 0.0, 'momentum.schedule': 'constant', 'second_view.blur': 0.0,
                        'predictor.hidden': 512}, (STUCK, COLLAPSES))}
REPORTS = Step(('experiments.verdict.reports', '{run}'), 'reports.json', ('reports', 'judged_by'))


def variants(scale: Scale) -> Mapping[str, Variant]:
  """Each run, and what the verdict reads of it."""
  return {name: Variant(f'{config}:imagenet100', {'data.dir': data, **SHORT, **changes}, after=(REPORTS,))
          for name, (config, data, changes, _) in RUNS.items()}


EXPERIMENT = Experiment(
  name='verdict',
  claim='At half of its training a run that learns nothing is named as such, without labels, and a run that '
        'learns is not.',
  source='conic_jax/run/verdict.py',
  paper='',
  variants=variants, questions=(), seeds=1, tuned=False, bare=True, own_page=True)
