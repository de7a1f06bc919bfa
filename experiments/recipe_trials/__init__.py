"""The trials that the rules of conic_jax/recipe were chosen by, on held-out training images."""
from collections.abc import Mapping
from typing import Any

from experiments.jobs import Experiment, Scale, Variant

# A network for a minute of a CPU, and what every trial has unless it says otherwise.
BASE = {
  'data.train': 'train', 'data.test': 'choose',
  'views.size': 48, 'views.strength': 0.5, 'views.blur': 0.0, 'views.crop': [0.15, 1.0],
  'encoder.name': 'resnet18', 'encoder.blocks': [1, 1, 1], 'encoder.width': 0.5, 'head.hidden': 512,
  'batch_size': 128, 'epochs': 20, 'optimizer.learning_rate': 0.06, 'optimizer.warmup_epochs': 1,
  'optimizer.per_epoch': False, 'log_every': 100, 'checkpoint.every_epochs': 1000.0, 'knn_every': 0,
  'eval.baselines': False, 'eval.batch_size': 128, 'eval.resize': 48, 'linear.epochs': 10,
  'linear.batch_size': 128, 'linear.learning_rates': [0.1, 0.3, 1.0, 3.0, 10.0],
  'linear.schedule': 'cosine'}
PACED = {'alpha_pace': 4.0, 'classifier.lr_scale': 10.0}
AS_THE_PAPER = {'alpha_pace': 0.0, 'classifier.lr_scale': 1.0, 'optimizer.warmup_epochs': 0}
SIMCLR = {'temperature': 0.2}
MOCO = {'queue.size': 1024, 'momentum.start': 0.99}
OF_A_THOUSAND = {'epochs': 40, 'eval.k': [1], 'linear.epochs': 5, 'batch_size': 64,
                 'optimizer.learning_rate': 0.042}
PHOTOS_NETWORK = {'views.size': 32, 'eval.resize': 32, 'encoder.blocks': [2, 2], 'encoder.width': 0.75}
# By name: config, set, and what differs from BASE (and, of ConIC, from PACED).
TRIALS: dict[str, tuple[str, str, dict[str, Any]]] = {
  'recipe': ('conic', 'cifar3k', {'eval.baselines': True}),
  'rows three times as fast': ('conic', 'cifar3k', {'classifier.lr_scale': 30.0}),
  'higher rate, rows the same': ('conic', 'cifar3k', {
    'optimizer.learning_rate': 0.2, 'classifier.lr_scale': 3.0}),
  'half the batch': ('conic', 'cifar3k', {'batch_size': 64}),
  'α at half the fall': ('conic', 'cifar3k', {'alpha_pace': 8.0}),
  'without α': ('conic', 'cifar3k', {'alpha': 0.0}),
  'warmer softmax': ('conic', 'cifar3k', {'temperature': 0.2}),
  'larger crops': ('conic', 'cifar3k', {'views.crop': [0.3, 1.0]}),
  'network of the photographs': ('conic', 'cifar3k', PHOTOS_NETWORK),
  'as the paper': ('conic', 'cifar3k', AS_THE_PAPER),
  'SimCLR': ('simclr', 'cifar3k', SIMCLR),
  'MoCo v2': ('moco_v2', 'cifar3k', MOCO),
  'recipe, 64 pixels': ('conic', 'tiny5k', {'epochs': 12, 'eval.baselines': True, 'linear.epochs': 5}),
  'SimCLR, 64 pixels': ('simclr', 'tiny5k', {**SIMCLR, 'epochs': 12, 'linear.epochs': 5}),
  'recipe, photographs': ('conic', 'imagenet1k', {**OF_A_THOUSAND, 'eval.baselines': True})}


def variants(scale: Scale) -> Mapping[str, Variant]:
  """All trials; all settings are given, none is left to the recipe."""
  return {f'{name} ({data})': Variant(f'{config}:imagenet100', settings_of(config, data, changes))
          for name, (config, data, changes) in TRIALS.items()}


def settings_of(config: str, data: str, changes: Mapping[str, Any]) -> dict[str, Any]:
  """All settings of a trial."""
  return {'data.dir': data, **BASE, **(PACED if config == 'conic' else {}), **changes}


EXPERIMENT = Experiment(
  name='recipe_trials',
  claim='What moves ConIC on a few thousand images, one change at a time.',
  source='docs/recipe.md',
  paper='The rules of the recipe follow from these; what each changes is in `__init__.py`.',
  variants=variants, questions=(), seeds=1, tuned=False, bare=True,
  measures=('knn_top1', 'linear_top1', 'loss_instance', 'feature_std', 'pixels_knn_top1',
            'random_init_knn_top1'))
