"""ConIC-S, ConIC with sampling (§4, Appendix A): the softmax over a window of classes, for very many images.

  python -m conic_jax.main --config=configs/conic_s.py                   the paper's ImageNet recipe
  python -m conic_jax.main --config=configs/conic_s.py:photos            minutes on a laptop, no download
  python -m conic_jax.main --config=configs/conic_s.py:folder --config.data.dir=IMAGES \
    --config.classifier.store=disk

The presets and everything else are those of configs/conic.py. A step costs the same for any number of images.
"""
from ml_collections import ConfigDict

from configs import common, conic


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """ConIC's settings with a window."""
  config = conic.consistent(conic.setting('conic_s'))
  config.classifier = common.windowed_classifier(
    **config.classifier.to_dict(),
    window=65_536,                # N′, classes in the softmax
    beta=0.0,                     # weight of each negative; 0 is (N − 1)/(N′ − 1)
    store='host')                 # where the other rows are kept
  return common.with_preset(config, 'conic_s', PRESETS, preset)


def cifar10(config: ConfigDict) -> None:
  """A sixth of the classes."""
  config.classifier.window = 8_192


def photos(config: ConfigDict) -> None:
  """A fifth of the classes."""
  conic.photos(config)
  config.classifier.window = 512


PRESETS = {**conic.PRESETS, 'cifar10': cifar10, 'photos': photos}
