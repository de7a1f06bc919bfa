"""BYOL, "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning" (Grill et al. 2020).

  python -m conic_jax.main --config=configs/byol.py                      ImageNet, 1000 epochs (74.3)
  python -m conic_jax.main --config=configs/byol.py:photos               minutes on a laptop, no download
  python -m conic_jax.main --config=configs/byol.py:cifar10 --config.data.dir=TFDS_DIR
  python -m conic_jax.main --config=configs/byol.py:folder --config.data.dir=IMAGES

The figure is linear top-1 on ImageNet, trained on 512 TPU v3 cores in about 8 hours (the paper, §3.3). The
default preset follows the public code: TensorFlow's colours with additive brightness, bicubic crops without
antialiasing, the last scales of residual blocks start at zero, projector and predictor end in a linear layer
without a bias, and LARS applies the rate outside its momentum.

Changed: the target starts as a copy of the online network; the code initialises it separately (and saw no
difference). A crop that does not fit is drawn again, as in torchvision; the code clips its sides to the
image. The blur mirrors the image at the border; the code blurs in zeros. Kernel initialisation and padding
are PyTorch's. The warm-up starts at the first step's share of the rate, not at zero. The linear protocol, and
whatever is not named here, is as in configs/common.py.

The other presets are ours: SGD, torchvision's colours, bilinear crops, biases and scales of one.
"""
from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """The public code's settings; a preset changes what its data set requires."""
  config = common.pretraining('byol')

  # The first view of an image, and how the second differs: see `paper`.
  config.views = common.views(count=1)
  config.second_view = ConfigDict({'blur': config.views.blur})

  # Projector and predictor: Linear-BN-ReLU-Linear.
  config.predictor = common.group({
    'hidden': config.head.hidden,   # width of the hidden layer
    'norm': True,                   # batch norm after it
    'output_bias': True,            # of the last linear layer
  })

  # Target network.
  config.momentum = common.momentum(start=0.996, schedule='cosine')
  return common.with_preset(config, 'byol', PRESETS, preset)


def paper(config: ConfigDict) -> None:
  """Appendices B and J of the paper, and details found only in the public code."""
  imagenet100(config)
  config.views.interpolation = 'bicubic'
  config.views.colour = 'tensorflow'
  config.views.additive_brightness = True
  config.encoder.zero_gamma = True
  config.head.output_bias = config.predictor.output_bias = False
  config.batch_size = 4096
  config.epochs = 1000
  config.optimizer = common.optimizer(
    name='lars', learning_rate=3.2,     # 0.2 for 256 images
    warmup_epochs=10, schedule='cosine', momentum=0.9, weight_decay=1.5e-6, decay_vectors=False,
    lr_in_momentum=False)


def imagenet100(config: ConfigDict) -> None:
  """The paper's strengths and widths, with SGD in batches of 512; LARS is for batches of thousands."""
  config.views.crop = (0.08, 1.0)
  config.views.strength = 1.0
  config.views.brightness = config.views.contrast = 0.4
  config.views.saturation, config.views.hue = 0.2, 0.1
  config.views.blur = 1.0
  config.second_view.blur = 0.1
  config.second_view.solarise = 0.2
  config.head.hidden = config.predictor.hidden = 4096
  config.head.features = 256


def folder(config: ConfigDict) -> None:
  """Laptop-sized data sets: the target follows faster because there are few steps."""
  config.momentum.start = 0.95


def small(config: ConfigDict) -> None:
  """Small images: neither view is blurred, and the predictor is as wide as the projector."""
  folder(config)
  config.second_view.blur = config.views.blur
  config.predictor.hidden = config.head.hidden


PRESETS = {'imagenet': paper, 'imagenet100': imagenet100, 'cifar10': small, 'photos': small, 'folder': folder}
