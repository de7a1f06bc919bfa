"""Semi-supervised learning: fine-tuning on 1% or 10% of the labels (One-Million, Table 7).

  python -m conic_jax.main --config=configs/semi.py:1pct --config.encoder=runs/one_million \\
    --config.data.dir=TFDS_DIR
  python -m conic_jax.main --config=configs/semi.py:photos_1pct --config.encoder=runs/photos
  python -m conic_jax.main --config=configs/semi.py:folder_10pct --config.encoder=runs/folder \\
    --config.data.dir=IMAGES                                     train/CLASS/… and val/CLASS/…

1pct and 10pct are ImageNet with the standard lists, 12,811 and 128,116 images, from TFDS
(imagenet2012_subset); for other data sets config.finetune.labels and config.seed choose the images, equally
many per class. The rates are the paper's: 0.001 for the encoder, 15 (1%) or 10 (10%) for the linear layer. It
gives no epochs, batch or schedule: 20, 256 and division by ten at 60% and 80% are ours. A rate of 15 suits
the small features of ImageNet encoders; cifar10 and photos use 0.1 (1%) and 1 (10%), found by trial on
photos.

The result is printed and written to semi_PRESET.json in config.run, by default the encoder's run or
runs/evaluated_NAME.
"""
from ml_collections import ConfigDict

from configs import common, finetune

SHARES = {'1pct': 0.01, '10pct': 0.1}
PRESETS = tuple(f'{data}{share}' for data in ('', 'folder_', 'cifar10_', 'photos_') for share in SHARES)


def get_config(preset: str = '1pct') -> ConfigDict:
  """The paper's rates; a preset is a data set and a share of its labels."""
  common.check('semi', PRESETS, preset)
  data, _, share = preset.rpartition('_')
  config = finetune.get_config({'cifar10': 'cifar10_32', '': 'folder'}.get(data, data))
  config.result = f'semi_{preset}'
  config.finetune.update(
    labels=SHARES[share], epochs=20, schedule='steps', milestones=(0.6, 0.8), weight_decay=1e-4,
    learning_rate=0.001, head_learning_rate=15.0 if share == '1pct' else 10.0)
  if not data:
    config.data.update(name=f'imagenet2012_subset/{share}', train='train', test='validation')
    config.finetune.labels = 1.0
  if data in ('cifar10', 'photos'):
    config.finetune.head_learning_rate = 0.1 if share == '1pct' else 1.0
  return config
