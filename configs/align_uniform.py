"""AlignUniform with MoCo's queue, "Understanding Contrastive Representation Learning through Alignment and
Uniformity on the Hypersphere" (Wang and Isola 2020).

  python -m conic_jax.main --config=configs/align_uniform.py             ImageNet, 200 epochs (67.69)
  python -m conic_jax.main --config=configs/align_uniform.py:photos      minutes on a laptop, no download
  python -m conic_jax.main --config=configs/align_uniform.py:folder --config.data.dir=IMAGES

The figure is linear top-1 on ImageNet of the authors' release, trained as MoCo v2, whose 200 epochs take 53
hours on 8 V100. Changed: pairs within the batch are of the whole batch, where the release has those of each
GPU. All else, with the presets, is as in configs/moco_v2.py.
"""
from ml_collections import ConfigDict

from configs import moco_v2


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """MoCo v2's settings with the two other losses."""
  config = moco_v2.get_config(preset)
  config.method = 'align_uniform'
  config.run = config.run.replace('moco_v2', 'align_uniform')
  del config.temperature
  config.align_uniform = ConfigDict()
  config.align_uniform.align = 3.0    # weight of the alignment
  config.align_uniform.uniform = 1.0  # weight of the uniformity
  config.align_uniform.t = 3.0        # inverse width of its kernel
  return config
