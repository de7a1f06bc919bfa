"""CO2 on MoCo v1, "CO2: Consistent Contrast for Unsupervised Visual Representation Learning" (ICLR 2021).

  python -m conic_jax.main --config=configs/co2_moco_v1.py               ImageNet, 200 epochs (Table 1: 63.5)
  python -m conic_jax.main --config=configs/co2_moco_v1.py:alpha_1       the presets of configs/co2_moco_v2.py
  python -m conic_jax.main --config=configs/co2_moco_v1.py:photos        minutes on a laptop, no download
  python -m conic_jax.main --config=configs/co2_moco_v1.py:folder --config.data.dir=IMAGES

For hardware, hours, changes and the source of α and τ_con, see configs/co2_moco_v2.py. Everything else is as
in configs/moco_v1.py.
"""
from ml_collections import ConfigDict

from configs import co2_moco_v2, common, moco_v1


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """MoCo v1's settings with the consistency term."""
  config = moco_v1.setting('co2')
  config.consistency = co2_moco_v2.consistency(alpha=10.0, temperature=0.04)
  return common.with_preset(config, 'co2_moco_v1', PRESETS, preset)


PRESETS = {**moco_v1.PRESETS, **co2_moco_v2.ablations(moco_v1.PRESETS['imagenet'])}
