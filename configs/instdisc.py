"""InstDisc, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (Wu et al. 2018).

  python -m conic_jax.main --config=configs/instdisc.py                  ImageNet, 200 epochs (54.0)
  python -m conic_jax.main --config=configs/instdisc.py:full             the softmax over the whole bank
  python -m conic_jax.main --config=configs/instdisc.py:photos           minutes on a laptop, no download
  python -m conic_jax.main --config=configs/instdisc.py:cifar10 --config.data.dir=TFDS_DIR
  python -m conic_jax.main --config=configs/instdisc.py:folder --config.data.dir=IMAGES

The figure is linear top-1 on ImageNet of a ResNet-50, from CO2's Table 1; the paper gives no hours. Changed:
batch norm is over the whole batch, in the public code over the images of each GPU; colour is dropped after
the jitter, not before it; and h has no 1e-7 added in its denominator. The paper's proximal term is neither in
the public code nor here. The code's kNN compares the head's 128 features with the bank; ours compares
features of the encoder, or with --config.eval.features=head those of the head, both freshly computed. The
linear protocol, and whatever is not named here, is as in configs/common.py.
"""
from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """The settings of the public code; a preset changes what its data set requires."""
  config = common.pretraining('instdisc')

  # One view.
  config.views = common.views(
    count=1, size=224, crop=(0.2, 1.0), flip=0.5, jitter=1.0, brightness=0.4, contrast=0.4, saturation=0.4,
    hue=0.4, grayscale=0.2, blur=0.0)

  # Network: one linear layer for the head.
  config.encoder = common.encoder(name='resnet50')
  config.head = common.head(hidden=0, features=128)

  # Loss, and the bank of each image's latest features.
  config.temperature = 0.07
  config.loss = common.group({
    'name': 'nce',                # or 'full', the softmax over the whole bank
    'noise': 4096,                # bank rows drawn as noise for each image
  })
  config.bank = common.group({
    'momentum': 0.5,              # of a row, which is then normalised
  })

  # Optimizer; the presets set batch and schedule.
  config.epochs = 200
  config.optimizer = common.optimizer(name='sgd', learning_rate=0.03, momentum=0.9, weight_decay=1e-4)
  return common.with_preset(config, 'instdisc', PRESETS, preset)


def paper(config: ConfigDict) -> None:
  """The paper's optimizer and evaluation."""
  config.batch_size = 256
  config.optimizer.schedule = 'steps'
  config.optimizer.milestones = (120, 160)
  config.eval.k = (200,)


def full(config: ConfigDict) -> None:
  """Eq. 2 without noise."""
  paper(config)
  config.loss.name = 'full'


def cifar10(config: ConfigDict) -> None:
  """CIFAR-10 with the public code's own batch, temperature and weight decay."""
  paper(config)
  config.batch_size = 128
  config.views.strength = 1.0
  config.temperature = 0.1
  config.optimizer.weight_decay = 5e-4


def photos(config: ConfigDict) -> None:
  """With few steps between visits to a row, a higher temperature keeps the features apart."""
  config.temperature = 0.3
  config.loss.noise = 512


PRESETS = {'imagenet': paper, 'full': full, 'imagenet100': paper, 'cifar10': cifar10, 'photos': photos,
           'folder': photos}
