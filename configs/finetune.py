"""Fine-tuning for classification, from an encoder or from scratch (One-Million, Tables 9 and 10).

  python -m conic_jax.main --config=configs/finetune.py:photos --config.encoder=runs/photos
  python -m conic_jax.main --config=configs/finetune.py:photos --config.encoder=random
  python -m conic_jax.main --config=configs/finetune.py:cifar100 --config.encoder=runs/conic \\
    --config.data.dir=TFDS_DIR
  python -m conic_jax.main --config=configs/finetune.py:folder --config.encoder=runs/conic \\
    --config.data.dir=IMAGES                                     train/CLASS/… and val/CLASS/…

The data sets of the tables by their TFDS names: cifar10, cifar100, sun397 (the first of its ten partitions),
dtd, inaturalist18 (i_naturalist2018 in TFDS). The papers say only that all layers are trained: epochs, batch,
rates and decay are ours, and the small images of CIFAR are resized to 224 for encoders of ImageNet.

--config.encoder=random trains from scratch and needs a higher rate (--config.finetune.learning_rate=0.1). The
result is printed and written to finetune_PRESET.json in config.run, by default the encoder's run or
runs/evaluated_NAME. The network is saved next to it, in finetune_PRESET/, a run that every command accepts.
Repeat the command to resume a stopped run.
"""
from ml_collections import ConfigDict

from configs import common

DATA = {
  'cifar10': {'name': 'cifar10', 'train': 'train', 'test': 'test'},
  'cifar100': {'name': 'cifar100', 'train': 'train', 'test': 'test'},
  'sun397': {'name': 'sun397/standard-part1-120k', 'train': 'train', 'test': 'test'},
  'dtd': {'name': 'dtd', 'train': 'train+validation', 'test': 'test'},
  'inaturalist18': {'name': 'i_naturalist2018', 'train': 'train', 'test': 'validation'},
  'folder': {'name': 'folder', 'train': 'train', 'test': 'val'},
  'photos': {'name': 'photos', 'train': 'train', 'test': 'test'},
  'cifar10_32': {'name': 'cifar10', 'train': 'train', 'test': 'test'}}


def get_config(preset: str = 'folder') -> ConfigDict:
  """All layers for 100 epochs, the new one at ten times the rate; cifar10_32 is CIFAR-10 at its own size."""
  common.check('finetune', DATA, preset)
  small = {'cifar10_32': 'cifar10', 'photos': 'photos'}
  config = common.classification('finetune', f'finetune_{preset}', small.get(preset, 'imagenet'))
  config.data.update(DATA[preset])
  config.finetune = common.finetune(learning_rate=0.01, head_learning_rate=0.1, epochs=100, batch_size=256)
  if preset == 'photos':
    config.finetune.epochs, config.finetune.batch_size = 5, 128
    config.finetune.crop = (0.5, 1.0)
  if preset == 'cifar10_32':
    config.finetune.epochs = 20
  return config.lock()
