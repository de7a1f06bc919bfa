"""PIC, "Parametric Instance Classification for Unsupervised Visual Feature Learning" (Cao et al., 2020).

  python -m conic_jax.main --config=configs/pic.py                       ImageNet, 200 epochs, one view of 224
  python -m conic_jax.main --config=configs/pic.py:multi_crop            one of 160 and three of 96 (68.6)
  python -m conic_jax.main --config=configs/pic.py:multi_crop --config.epochs=400 \
    --config.optimizer.warmup_epochs=10                                  (70.3)
  python -m conic_jax.main --config=configs/pic.py:photos                minutes on a laptop, no download
  python -m conic_jax.main --config=configs/pic.py:cifar10 --config.data.dir=TFDS_DIR
  python -m conic_jax.main --config=configs/pic.py:folder --config.data.dir=IMAGES

The figures are linear top-1 on ImageNet for multi-crop, as published with the authors' release, which trains
on 4 GPUs with 64 images each and gives no hours. A multi_crop run evaluates views of 160 pixels; those
figures use 224: run configs/linear.py with --config.views.size=224 on its run. The release has a script for
multi-crop only; the crop of the single view, at least a fifth of the image, is the default of its options.

Changed: the release's sampler reshuffles all images at nearly every window, so neighbouring windows do not
overlap as the paper intends; ours do. It has neither recent negative sampling nor weight correction; ours are
ConIC-S's window, exact up to float32. It passes each view through the network separately; we pass a group of
views at once, which shares its batch-norm statistics. Its rows start with unequal norms, N(0, 0.01²) in each
entry; ours start at their mean norm. Its warm-up starts at a hundredth of the rate, ours at the first step's
share of it. The linear protocol, and whatever is not named here, is as in configs/common.py.
"""
from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """The release's settings; a preset changes what its data set requires."""
  config = common.pretraining('pic')

  # One view, plus small ones if their count is not 0.
  config.views = common.views(count=1, size=224, crop=(0.08, 1.0))
  config.small_views = common.group({
    'count': 0,                   # small views per image
    'size': 96,                   # pixels per side
    'crop': (0.08, 0.14),         # area of the crop, as a share of the image
  })

  # Network: Linear-ReLU-Linear, and blocks that start as the identity.
  config.encoder = common.encoder(name='resnet50', zero_gamma=True)
  features = 128
  config.head = common.head(hidden=2048, features=features, norm=False)

  # Loss and rows.
  config.temperature = 0.2
  config.classifier = common.windowed_classifier(
    norm=0.01 * features ** 0.5,
    window=65_536,                # most recent classes in the softmax
    beta=1.0,                     # a plain softmax over them
    store='host')                 # where the other rows are kept

  # Optimizer; the sliding windows overlap by 87.5%.
  config.epochs = 200
  config.optimizer = common.optimizer(
    name='sgd', schedule='cosine', end=1e-6, momentum=0.9, weight_decay=1e-4)
  config.sampler = common.sampler(window=131_072, stride=16_384)
  return common.with_preset(config, 'pic', PRESETS, preset)


def release(config: ConfigDict) -> None:
  """The release's crop of one view, and its optimizer: 0.03 for 256 images."""
  config.views.crop = (0.2, 1.0)
  config.batch_size = 256
  config.optimizer.learning_rate = 0.03
  config.optimizer.warmup_epochs = 5


def multi_crop(config: ConfigDict) -> None:
  """One view of 160 pixels and three of 96, at about the cost of one of 224."""
  release(config)
  config.views.size = 160
  config.views.crop = (0.14, 1.0)
  config.small_views.count = 3


def cifar10(config: ConfigDict) -> None:
  """Windows that cover the same share of the data as for ImageNet."""
  config.sampler.window, config.sampler.stride = 8_192, 1_024
  config.classifier.window = 4_096


def photos(config: ConfigDict) -> None:
  """Windows of two fifths of the data. Rows with such a small norm turn fast without a separate rate."""
  config.sampler.window, config.sampler.stride = 1_024, 128
  config.classifier.window = 512


PRESETS = {'imagenet': release, 'multi_crop': multi_crop, 'imagenet100': release, 'cifar10': cifar10,
           'photos': photos, 'folder': photos}
