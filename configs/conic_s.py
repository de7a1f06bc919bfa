"""ConIC-S, ConIC with sampling (§4, Appendix A): the softmax over a window of classes, for very many images.

  python -m conic_jax.main --config=configs/conic_s.py                   the paper's ImageNet recipe
  python -m conic_jax.main --config=configs/conic_s.py:photos            minutes on a laptop, no download
  python -m conic_jax.main --config=configs/conic_s.py:folder --config.data.dir=IMAGES \
    --config.classifier.store=disk

The presets and all else are those of configs/conic.py. A step costs the same for any number of images.
"""
from ml_collections import ConfigDict

from configs import auto, conic


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """ConIC's settings with a window."""
  config = conic.get_config(preset)
  config.method = 'conic_s'
  config.run = 'runs/conic_s' if preset == 'imagenet' else f'runs/conic_s_{preset}'
  config.classifier.window = 65_536   # N′, classes in the softmax
  config.classifier.beta = 0.0        # weight of each negative; 0 is (N − 1)/(N′ − 1)
  config.classifier.store = 'host'    # where the other rows are: 'device', 'host' (memory) or 'disk'
  if preset == 'photos':
    config.classifier.window = 512
  if preset == 'cifar10':
    config.classifier.window = 8_192
  if preset == 'folder':
    auto.leave_open(config)
  return config
