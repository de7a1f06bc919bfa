"""MoCo v1, "Momentum Contrast for Unsupervised Visual Representation Learning" (He et al. 2020).

  python -m conic_jax.main --config=configs/moco_v1.py                   ImageNet, 200 epochs (60.6)
  python -m conic_jax.main --config=configs/moco_v1.py:photos            minutes on a laptop, no download
  python -m conic_jax.main --config=configs/moco_v1.py:cifar10 --config.data.dir=TFDS_DIR
  python -m conic_jax.main --config=configs/moco_v1.py:folder --config.data.dir=IMAGES

The figure is linear top-1 on ImageNet, trained for 53 hours on 8 V100. Changed: as in configs/moco_v2.py,
which has everything not named here; and colour is dropped after the jitter, not before it.
"""
from ml_collections import ConfigDict

from configs import common, moco_v2


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """The settings of the paper and its public code; the presets are those of configs/moco_v2.py."""
  return common.with_preset(setting('moco'), 'moco_v1', PRESETS, preset)


def setting(method: str) -> ConfigDict:
  """What MoCo v1 does differently from v2 on every data set."""
  config = moco_v2.setting(method)
  config.head.hidden = 0          # one linear layer
  config.temperature = 0.07
  return config


def augmented(preset):
  """A preset of MoCo v2 with the augmentation and the schedule of v1."""
  def first_version(config: ConfigDict) -> None:
    preset(config)
    config.views.jitter = 1.0
    config.views.strength = 1.0
    config.views.brightness = config.views.contrast = config.views.saturation = config.views.hue = 0.4
    config.views.blur = 0.0
    config.optimizer.schedule = 'steps'
    config.optimizer.milestones = (120, 160)
  return first_version


PRESETS = {name: preset if name in ('photos', 'cifar10') else augmented(preset)
           for name, preset in moco_v2.PRESETS.items()}
