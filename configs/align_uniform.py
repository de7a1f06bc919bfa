"""AlignUniform with MoCo's queue, "Understanding Contrastive Representation Learning through Alignment and
Uniformity on the Hypersphere" (Wang and Isola 2020).

  python -m conic_jax.main --config=configs/align_uniform.py             ImageNet, 200 epochs (67.69)
  python -m conic_jax.main --config=configs/align_uniform.py:photos      minutes on a laptop, no download
  python -m conic_jax.main --config=configs/align_uniform.py:folder --config.data.dir=IMAGES

The figure is linear top-1 on ImageNet from the authors' release, which trains like MoCo v2; MoCo v2's 200
epochs take 53 hours on 8 V100. Changed: pairs within the batch come from the whole batch; the release uses
those of each GPU. Everything else, presets included, is as in configs/moco_v2.py.
"""
from ml_collections import ConfigDict

from configs import common, moco_v2


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """MoCo v2's settings with the alignment and uniformity losses instead."""
  config = moco_v2.setting('align_uniform')
  config.align_uniform = common.group({
    'align': 3.0,                 # weight of the alignment loss
    'uniform': 1.0,               # weight of the uniformity loss
    't': 3.0,                     # inverse width of the uniformity kernel
  })
  return common.with_preset(config, 'align_uniform', moco_v2.PRESETS, preset)
