"""One-Million's classifier with its rows copied to every device: the baseline of its Table 1 ("DDP").

  python -m conic_jax.plan --config=configs/data_parallel.py --topology=64xV100-32GB \
    --config.num_instances=1281167
  python -m conic_jax.main --config=configs/data_parallel.py:photos      minutes on a laptop, no download

There to be compared with; configs/one_million.py trains the same with the rows split. The prior and the
smoothed labels are left out, as they cost next to nothing.
"""
from ml_collections import ConfigDict

from configs import auto, conic, one_million


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """One-Million's settings; the rows learn like the encoder."""
  if preset not in conic.PRESETS:
    raise ValueError(f"There is no preset '{preset}' of configs/data_parallel.py; there is: "
                     f"{', '.join(conic.PRESETS)}.")
  config = one_million.get_config(preset)
  config.method = 'data_parallel'
  config.run = 'runs/data_parallel' if preset == 'imagenet' else f'runs/data_parallel_{preset}'
  config.classifier.lr_scale = 1.0
  for other in ('smoothing', 'prior'):
    del config[other]
  del config.classifier.drawn
  if preset == 'folder':
    auto.leave_open(config)
  return config

