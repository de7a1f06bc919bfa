"""MoCo v2, "Improved Baselines with Momentum Contrastive Learning" (Chen et al. 2020).

  python -m conic_jax.main --config=configs/moco_v2.py                   ImageNet, 200 epochs (67.5)
  python -m conic_jax.main --config=configs/moco_v2.py:photos            minutes on a laptop, no download
  python -m conic_jax.main --config=configs/moco_v2.py:cifar10 --config.data.dir=TFDS_DIR
  python -m conic_jax.main --config=configs/moco_v2.py:imagenet100 --config.data.dir=IMAGES
  python -m conic_jax.main --config=configs/moco_v2.py:folder --config.data.dir=IMAGES

The figure is linear top-1 on ImageNet, trained for 53 hours on 8 V100. Changed: batch norm is over 8 groups
of the batch on any number of devices, and the keys' groups are shuffled rather than the keys. Whatever is not
named here is as in configs/common.py.
"""
from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """The settings of the paper and its public code; a preset changes what its data set requires."""
  return common.with_preset(contrast(setting('moco')), 'moco_v2', PRESETS, preset)


def setting(method: str) -> ConfigDict:
  """Everything but the loss: queue, momentum encoder and batch norm in groups."""
  config = common.pretraining(method)

  # Head: Linear-ReLU-Linear.
  config.head = common.head(hidden=2048, features=128, norm=False)

  # Keys.
  config.queue = common.group({
    'size': 65_536,               # K; need not be a multiple of the batch or of the devices
    'mask_own': False,            # exclude keys of the query's own image from its negatives
    'split': True,                # split keys over the devices; False copies them to each
  })

  # Momentum encoder.
  config.momentum = common.momentum(start=0.999, schedule='constant')

  # Batch norm.
  config.batch_norm = common.group({
    'groups': 8,                  # parts of the global batch with their own statistics; 0: the whole batch
    'shuffle': True,              # different parts for the keys, in every step
  })

  # Optimizer; the presets set batch and rate.
  config.epochs = 200
  config.optimizer = common.optimizer(name='sgd', schedule='cosine', momentum=0.9, weight_decay=1e-4)
  return config


def contrast(config: ConfigDict) -> ConfigDict:
  """The loss (Eq. 1)."""
  config.temperature = 0.2
  return config


def paper(config: ConfigDict) -> None:
  """SimCLR's augmentation at half strength, and a rate that changes once per epoch."""
  config.views.crop = (0.2, 1.0)
  config.views.strength = 0.5     # brightness, contrast, saturation 0.4, hue 0.1
  config.batch_size = 256
  config.optimizer.learning_rate = 0.03
  config.optimizer.per_epoch = True
  config.linear.learning_rates = (30.0,)
  config.linear.batch_size = 256
  config.linear.schedule = 'steps'
  config.linear.milestones = (0.6, 0.8)   # epochs 60 and 80


def imagenet100(config: ConfigDict) -> None:
  """The paper's settings; there may be fewer images than keys in the queue."""
  paper(config)
  config.queue.mask_own = True


def small(config: ConfigDict) -> None:
  """Laptop-sized data sets: an image comes back while its last key is still in the queue."""
  config.queue.size = 4096
  config.queue.mask_own = True
  config.momentum.start = 0.99


def photos(config: ConfigDict) -> None:
  """With few steps, the key encoder follows faster."""
  small(config)
  config.queue.size = 1024


PRESETS = {'imagenet': paper, 'imagenet100': imagenet100, 'cifar10': small, 'photos': photos, 'folder': small}
