"""kNN accuracy of a frozen encoder: cosine similarity, votes exp(s/0.07).

  python -m conic_jax.main --config=configs/knn.py --config.encoder=runs/photos
  python -m conic_jax.main --config=configs/knn.py:photos --config.encoder=random

--config.eval.features=head compares the features of the run's projection head instead of the encoder's, as
InstDisc's code does. A field that is None, or an empty data name, takes its value from the encoder's own run.
A random encoder or a weights file has no run: the preset (imagenet, cifar10, photos, folder) provides the
data, and for a random encoder its network. The result is printed and written to knn.json (knn_PRESET.json) in
config.run, by default the encoder's run or runs/evaluated_NAME.
"""
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import common

PRESETS = ('run', 'imagenet', 'cifar10', 'photos', 'folder')


def get_config(preset: str = 'run') -> ConfigDict:
  """The settings of the run's own config; configs/common.py has InstDisc's vote with k of 20 and 200."""
  common.check('knn', PRESETS, preset)
  config = common.classification('knn', 'knn' if preset == 'run' else f'knn_{preset}', preset)
  with config.eval.unlocked():
    config.eval.k = placeholder(tuple)          # the first is the headline
    config.eval.features = placeholder(str)     # what to compare: features of the 'encoder' or the 'head'
  if preset != 'run':
    config.eval.k, config.eval.features = (20, 200), 'encoder'
  return config.lock()
