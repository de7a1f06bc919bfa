"""SimCLR, "A Simple Framework for Contrastive Learning of Visual Representations" (Chen et al. 2020).

  python -m conic_jax.main --config=configs/simclr.py                    ImageNet, 1000 epochs (69.3)
  python -m conic_jax.main --config=configs/simclr.py --config.epochs=200        (66.6, InsCon's Table 6)
  python -m conic_jax.main --config=configs/simclr.py:photos             minutes on a laptop, no download
  python -m conic_jax.main --config=configs/simclr.py:cifar10 --config.data.dir=TFDS_DIR
  python -m conic_jax.main --config=configs/simclr.py:folder --config.data.dir=IMAGES

The figures are linear top-1 on ImageNet; 100 epochs took about 6 hours on 32 TPU v3. The default preset
follows the public code: it sums both directions of the loss, while the paper's Algorithm 1 averages them
(this doubles the rate for batch norm, which LARS does not rescale); it uses TensorFlow's colours and bicubic
crops without antialiasing; the last scales of residual blocks start at zero, and the last batch norm of the
head has no bias. Brightness is multiplied, the code's default; its first release added it
(--config.views.additive_brightness=True). The head has the two layers of the first paper.

Changed: a crop's area is drawn uniformly, as in torchvision; TensorFlow's op draws the height, with at least
a tenth of the image (42% of a square one on average). The blur mirrors the image at the border, where the
code blurs in zeros, and its deviation is drawn for every view, not once per batch. Kernel initialisation and
padding are PyTorch's. The warm-up starts at the first step's share of the rate, not at zero. The linear
protocol, and whatever is not named here, is as in configs/common.py.

The other presets are ours: SGD, torchvision's colours, bilinear crops and the mean of both directions.
"""
from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """The public code's settings; a preset changes what its data set requires."""
  config = common.pretraining('simclr')
  config.head = common.head(hidden=2048, features=128, norm=True)
  config.temperature = 0.1
  config.loss = common.group({
    'reduction': 'mean',          # of both directions; or 'sum'
  })
  return common.with_preset(config, 'simclr', PRESETS, preset)


def paper(config: ConfigDict) -> None:
  """LARS at 0.3 for 256 images."""
  config.views = common.views(
    count=2, size=224, crop=(0.08, 1.0), interpolation='bicubic', flip=0.5, jitter=0.8, strength=1.0,
    colour='tensorflow', brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grayscale=0.2, blur=0.5,
    mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))    # pixels stay between 0 and 1
  config.encoder.zero_gamma = True
  config.head.output_bias = False
  config.loss.reduction = 'sum'
  config.batch_size = 4096
  config.epochs = 1000
  config.optimizer = common.optimizer(
    name='lars', learning_rate=4.8, warmup_epochs=10, schedule='cosine', momentum=0.9, weight_decay=1e-6,
    decay_vectors=False)


def small(config: ConfigDict) -> None:
  """Laptop-sized data sets: SGD, because batches are small, and a warmer softmax for the few negatives."""
  config.temperature = 0.2


def imagenet100(config: ConfigDict) -> None:
  """SimCLR with SGD in batches of 512; LARS is for batches of thousands."""
  config.views.crop = (0.08, 1.0)


PRESETS = {'imagenet': paper, 'imagenet100': imagenet100, 'cifar10': small, 'photos': small, 'folder': small}
