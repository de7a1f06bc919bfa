"""Fine-tuning for classification, from an encoder or from scratch (One-Million, Tables 9 and 10).

  python -m conic_jax.main --config=configs/finetune.py:photos --config.encoder=runs/photos
  python -m conic_jax.main --config=configs/finetune.py:photos --config.encoder=random
  python -m conic_jax.main --config=configs/finetune.py:cifar100 --config.encoder=runs/conic \\
    --config.data.dir=TFDS_DIR
  python -m conic_jax.main --config=configs/finetune.py:folder --config.encoder=runs/conic \\
    --config.data.dir=IMAGES                                     train/CLASS/… and val/CLASS/…

The data sets of the tables by their TFDS names: cifar10, cifar100, sun397 (the first of its ten partitions),
dtd, inaturalist18 (which TFDS has as i_naturalist2018). The papers give no settings but that all layers are
trained: epochs, batch, rates and decay are ours, and the small images of CIFAR are brought to 224 for the
encoders of ImageNet.

--config.encoder=random is from scratch: it wants a higher rate (--config.finetune.learning_rate=0.1). The
result is printed and written to finetune_PRESET.json in config.run, which is the encoder's run, or
runs/evaluated_NAME.
"""
from ml_collections import ConfigDict

from configs import knn

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
  """All layers for 100 epochs, the new one at ten times the rate; cifar10_32 is CIFAR-10 as it is."""
  if preset not in DATA:
    raise ValueError(f"There is no preset '{preset}' of configs/finetune.py; there is: {', '.join(DATA)}.")
  small = {'cifar10_32': 'cifar10', 'photos': 'photos'}
  config = knn.get_config(small.get(preset, 'imagenet'))
  config.task, config.result = 'finetune', f'finetune_{preset}'
  del config.eval.k, config.eval.features
  config.data.update(**DATA[preset])

  config.finetune = ConfigDict()
  config.finetune.learning_rate = 0.01        # of the encoder
  config.finetune.head_learning_rate = 0.1    # of the new linear layer
  config.finetune.epochs = 100
  config.finetune.batch_size = 256
  config.finetune.momentum = 0.9
  config.finetune.weight_decay = 1e-4
  config.finetune.schedule = 'cosine'         # or 'steps'
  config.finetune.milestones = ()             # shares of the training where 'steps' divides the rates by 10
  config.finetune.crop = (0.08, 1.0)          # area of the training crop as a share of the image
  config.finetune.labels = 1.0                # share of the labels that is used; 1 is all images
  if preset == 'photos':
    config.finetune.epochs, config.finetune.batch_size = 5, 128
    config.finetune.crop = (0.5, 1.0)
  if preset == 'cifar10_32':
    config.finetune.epochs = 20
  return config
