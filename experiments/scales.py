"""The settings that the runs of every experiment share.

`cpu` is for two cores and `gpu` for one accelerator. Their settings are what conic_jax/recipe chooses for
such a folder, written out so that a change to the recipe changes no experiment. `imagenet100` and `imagenet`
are the papers' own, for 8 GPUs; large.md has their hours. `--data` of `python -m experiments.run` is the
folder of data sets that `python -m experiments.sets` writes.
"""
from typing import Any

from experiments.jobs import Scale

# A row turns by half a radian per visit: lr_scale = 0.5 (1 − m) B τ / rate.
RATE = 0.06
ROWS = {'classifier.lr_scale': 11.0}
PACED = {'temperature': 0.1, 'alpha_pace': 4.0}
QUEUE = {'queue.size': 2500, 'queue.mask_own': True, 'momentum.start': 0.99, 'batch_norm.groups': 8}
CONTRAST = {'temperature': 0.2, **QUEUE}

CONFIGS: dict[str, dict[str, Any]] = {
  'conic': {'alpha': 2.5, **PACED, **ROWS},
  'conic_s': {'alpha': 2.5, **PACED, **ROWS, 'classifier.window': 1280, 'classifier.store': 'device'},
  'exemplar': {'temperature': 0.1, **ROWS},
  'one_million': {'temperature': 0.15, 'classifier.lr_scale': 16.0, 'smoothing.alpha': 0.2,
                  'smoothing.k': 100, 'prior.batch_norm': 'running', 'prior.normalise': True},
  'pic': {'temperature': 0.2, 'classifier.lr_scale': 1.0, 'sampler.window': 1920, 'sampler.stride': 240,
          'classifier.window': 960, 'classifier.store': 'device'},
  'instdisc': {'temperature': 0.3, 'loss.noise': 1000},
  'moco_v1': CONTRAST, 'moco_v2': CONTRAST, 'co2_moco_v1': CONTRAST, 'co2_moco_v2': CONTRAST,
  'inscon': {**CONTRAST, 'cell.queue': 22_500, 'cell.hidden': 256},
  'align_uniform': QUEUE,
  'simclr': {'temperature': 0.2},
  'byol': {'second_view.blur': 0.0, 'predictor.hidden': 256, 'momentum.start': 0.98}}
# Methods whose head is one linear layer.
ONE_LAYER = ('instdisc', 'moco_v1', 'co2_moco_v1')

COMMON: dict[str, Any] = {
  'data.train': 'train', 'data.test': 'test', 'minutes': 0.0,
  'views.crop': [0.15, 1.0], 'views.strength': 0.5, 'views.blur': 0.0,
  'optimizer.name': 'sgd', 'optimizer.schedule': 'cosine', 'optimizer.milestones': [],
  'optimizer.learning_rate': RATE, 'sampler.window': 0, 'sampler.stride': 0,
  'knn_every': 0, 'log_every': 10, 'checkpoint.every_epochs': 5.0, 'probe.images': 1000,
  'eval.k': [20], 'eval.baselines': False, 'eval.resize': 32,
  'linear.learning_rates': [0.1, 0.3, 1.0, 3.0, 10.0], 'linear.schedule': 'cosine',
  'linear.normalise': 'none'}
SMALL = {
  'data.dir': 'cifar5k', 'views.size': 32, 'encoder.name': 'resnet18', 'encoder.blocks': [1, 1],
  'encoder.width': 0.5, 'encoder.stem': 'imagenet', 'batch_size': 128, 'epochs': 20,
  'optimizer.warmup_epochs': 2.0, 'eval.batch_size': 128, 'linear.epochs': 10, 'linear.batch_size': 128}
LARGE = {
  'data.dir': 'cifar45k', 'views.size': 32, 'encoder.name': 'resnet18', 'encoder.blocks': [],
  'encoder.width': 1.0, 'encoder.stem': 'cifar', 'batch_size': 256, 'epochs': 200,
  'optimizer.warmup_epochs': 10.0, 'eval.batch_size': 512, 'linear.epochs': 100, 'linear.batch_size': 512}


def with_heads(hidden: int) -> dict[str, dict[str, Any]]:
  """`CONFIGS` with hidden layers of this width, for methods that have one."""
  return {name: {'head.hidden': 0 if name in ONE_LAYER else hidden, **settings}
          for name, settings in CONFIGS.items()}


# The papers' rates, from which rates proportional to the batch start. On ImageNet-100 SimCLR uses SGD.
CONIC = {'alpha': 2.5, 'alpha_pace': 0.0, 'classifier.lr_scale': 1.0, 'optimizer.learning_rate': 0.06,
         'batch_size': 512}
SOME = {'conic': CONIC, 'simclr': {'optimizer.learning_rate': 0.06, 'batch_size': 512}}
PAPERS: dict[str, dict[str, Any]] = {
  'conic': CONIC, 'simclr': {'optimizer.learning_rate': 0.6, 'batch_size': 512, 'epochs': 200},
  'byol': {'epochs': 200}}

SCALES = {scale.name: scale for scale in (
  Scale('cpu', 'folder', {**COMMON, **SMALL}, with_heads(256), 5000, (2, 5, 10, 20), (32, 128, 512),
        256, 200),
  Scale('gpu', 'folder', {**COMMON, **LARGE}, with_heads(512), 45_000, (10, 25, 50, 200), (64, 256, 1024),
        2304, 2000),
  Scale('imagenet100', 'imagenet100', {'data.dir': 'imagenet100'}, SOME, 126_689, (10, 25, 50, 200),
        (128, 512, 2048), 6400, 2000, tuned=False),
  Scale('imagenet', 'imagenet', {'data.dir': 'tfds'}, PAPERS, 1_281_167, (10, 25, 50, 200),
        (128, 512, 2048), 65_536, 2000, tuned=False))}
