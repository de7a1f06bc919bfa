"""kNN accuracy of a frozen encoder: cosine similarity, votes exp(s/0.07).

  python -m conic_jax.main --config=configs/knn.py --config.encoder=runs/photos
  python -m conic_jax.main --config=configs/knn.py:photos --config.encoder=random

--config.eval.features=head compares the features of the run's projection head instead of the encoder's, as
InstDisc's code does. A field that is None, or an empty name of the data, is taken from the encoder's own run.
An encoder that is random, or a file of weights, has no run: the preset (imagenet, cifar10, photos, folder)
gives it data, and a random one its network. The result is printed and written to knn.json (knn_PRESET.json)
in config.run, which is the encoder's run, or runs/evaluated_NAME.
"""
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import common

PRESETS = ('run', 'imagenet', 'cifar10', 'photos', 'folder')


def get_config(preset: str = 'run') -> ConfigDict:
  """As the run's own config says: by configs/common.py InstDisc's vote with k of 20 and 200."""
  common.check('knn', PRESETS, preset)
  config = common.classification('knn', 'knn' if preset == 'run' else f'knn_{preset}', preset)
  with config.eval.unlocked():
    config.eval.k = placeholder(tuple)          # the first is the headline
    config.eval.features = placeholder(str)     # what is compared: features of the 'encoder' or of the 'head'
  if preset != 'run':
    config.eval.k, config.eval.features = (20, 200), 'encoder'
  return config.lock()
