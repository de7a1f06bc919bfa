"""One-Million's classifier with its rows copied to every device: the baseline of its Table 1 ("DDP").

  python -m conic_jax.plan --config=configs/data_parallel.py --topology=64xV100-32GB \
    --config.num_instances=1281167
  python -m conic_jax.main --config=configs/data_parallel.py:photos      minutes on a laptop, no download

It is here for comparison; configs/one_million.py trains the same with the rows split. The prior and the
smoothed labels are left out because they cost next to nothing.
"""
from ml_collections import ConfigDict

from configs import common, one_million


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """One-Million's settings; the rows learn like the encoder."""
  return common.with_preset(one_million.setting('data_parallel'), 'data_parallel', PRESETS, preset)


PRESETS = {**common.PLAIN, 'imagenet': one_million.optimizer, 'imagenet100': one_million.optimizer}
