"""CO2 on MoCo v2, "CO2: Consistent Contrast for Unsupervised Visual Representation Learning" (ICLR 2021).

  python -m conic_jax.main --config=configs/co2_moco_v2.py               ImageNet, 200 epochs (Table 1: 68.0)
  python -m conic_jax.main --config=configs/co2_moco_v2.py:alpha_1       α: alpha_0.1, 0.3, 1, 3, 10
  python -m conic_jax.main --config=configs/co2_moco_v2.py:tau_0.1       τ_con: tau_0.02, 0.04, … 0.1
  python -m conic_jax.main --config=configs/co2_moco_v2.py:photos        minutes on a laptop, no download
  python -m conic_jax.main --config=configs/co2_moco_v2.py:folder --config.data.dir=IMAGES

The figure is linear top-1 on ImageNet. The slides give neither hardware nor hours; a step needs one more
product of the keys with the queue than MoCo's. α and τ_con are not in the slides: they are quoted from memory
of the paper and were not checked. The slides show part of Figure 2's grids; the rest is ours. Everything else
is as in configs/moco_v2.py.
"""
from ml_collections import ConfigDict

from configs import common, moco_v2

ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0)
TEMPERATURES = (0.02, 0.04, 0.06, 0.08, 0.1)


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """MoCo v2's settings with the consistency term; each Figure 2 preset changes one of its two numbers."""
  config = moco_v2.contrast(moco_v2.setting('co2'))
  config.consistency = consistency(alpha=0.3, temperature=0.05)
  return common.with_preset(config, 'co2_moco_v2', PRESETS, preset)


def consistency(alpha: float, temperature: float) -> ConfigDict:
  """The consistency term."""
  return common.group({
    'alpha': alpha,               # α
    'temperature': temperature,   # τ_con
  })


def ablations(paper) -> dict:
  """The presets of Figure 2, by name, derived from the ImageNet preset `paper`."""
  def changed(**changes):
    def preset(config: ConfigDict) -> None:
      paper(config)
      config.consistency.update(changes)
    return preset
  return {**{f'alpha_{alpha:g}': changed(alpha=alpha) for alpha in ALPHAS},
          **{f'tau_{temperature:g}': changed(temperature=temperature) for temperature in TEMPERATURES}}


PRESETS = {**moco_v2.PRESETS, **ablations(moco_v2.PRESETS['imagenet'])}
