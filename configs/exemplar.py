"""Exemplar-CNN with the cosine softmax: ConIC without its consistency loss, in ConIC's setting (§5).

  python -m conic_jax.main --config=configs/exemplar.py                  as in ConIC's comparison
  python -m conic_jax.main --config=configs/exemplar.py:photos           minutes on a laptop, no download

The presets are those of configs/conic.py. Dosovitskiy et al. (2016) used another network, another
softmax and 16,000 images; ConIC's Tables 2 and 3 train it as here.
"""
from ml_collections import ConfigDict

from configs import common, conic


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """ConIC's settings with α = 0."""
  return common.with_preset(conic.setting('exemplar'), 'exemplar', PRESETS, preset)


PRESETS = {**common.PLAIN, 'photos': conic.fast_rows}
