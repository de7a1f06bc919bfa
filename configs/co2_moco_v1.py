"""CO2 on MoCo v1, "CO2: Consistent Contrast for Unsupervised Visual Representation Learning" (ICLR 2021).

  python -m conic_jax.main --config=configs/co2_moco_v1.py               ImageNet, 200 epochs (Table 1: 63.5)
  python -m conic_jax.main --config=configs/co2_moco_v1.py:alpha_1       the presets of configs/co2_moco_v2.py
  python -m conic_jax.main --config=configs/co2_moco_v1.py:photos        minutes on a laptop, no download
  python -m conic_jax.main --config=configs/co2_moco_v1.py:folder --config.data.dir=IMAGES

Hardware, hours, changes, and where α and τ_con are from: as configs/co2_moco_v2.py says. All else is as in
configs/moco_v1.py.
"""
from ml_collections import ConfigDict

from configs import co2_moco_v2, moco_v1


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """MoCo v1's settings with the consistency term."""
  if preset not in co2_moco_v2.PRESETS:
    raise ValueError(f"There is no preset '{preset}' of configs/co2_moco_v1.py; there is: "
                     f"{', '.join(co2_moco_v2.PRESETS)}.")
  config = moco_v1.get_config('imagenet' if preset in co2_moco_v2.ABLATIONS else preset)
  co2_moco_v2.consistent(config, 'co2_moco_v1', preset, alpha=10.0, temperature=0.04)
  return config
