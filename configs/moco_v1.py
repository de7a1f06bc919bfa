"""MoCo v1, "Momentum Contrast for Unsupervised Visual Representation Learning" (He et al. 2020).

  python -m conic_jax.main --config=configs/moco_v1.py                   ImageNet, 200 epochs (60.6)
  python -m conic_jax.main --config=configs/moco_v1.py:photos            minutes on a laptop, no download
  python -m conic_jax.main --config=configs/moco_v1.py:cifar10 --config.data.dir=TFDS_DIR
  python -m conic_jax.main --config=configs/moco_v1.py:folder --config.data.dir=IMAGES

The figure is linear top-1 on ImageNet, of 53 hours on 8 V100. Changed: as in configs/moco_v2.py, which has
all that is not named here; and colour is dropped after the jitter, not before it.
"""
from ml_collections import ConfigDict

from configs import auto, moco_v2


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """The settings of the paper and its public code; the presets are those of configs/moco_v2.py."""
  config = moco_v2.get_config(preset)
  config.run = config.run.replace('moco_v2', 'moco_v1')
  first_version(config, preset)
  if preset == 'folder':
    auto.leave_open(config)
  return config


def first_version(config: ConfigDict, preset: str) -> None:
  """What MoCo v1 has other than v2."""
  config.head.hidden = 0          # one linear layer
  config.temperature = 0.07
  if preset not in ('photos', 'cifar10'):
    config.views.jitter = 1.0
    config.views.strength = 1.0
    config.views.brightness = config.views.contrast = config.views.saturation = config.views.hue = 0.4
    config.views.blur = 0.0
    config.optimizer.schedule = 'steps'
    config.optimizer.milestones = (120, 160)
