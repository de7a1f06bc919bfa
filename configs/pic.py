"""PIC, "Parametric Instance Classification for Unsupervised Visual Feature Learning" (Cao et al., 2020).

  python -m conic_jax.main --config=configs/pic.py                       ImageNet, 200 epochs, one view of 224
  python -m conic_jax.main --config=configs/pic.py:multi_crop            one of 160 and three of 96 (68.6)
  python -m conic_jax.main --config=configs/pic.py:multi_crop --config.epochs=400 \
    --config.optimizer.warmup_epochs=10                                  (70.3)
  python -m conic_jax.main --config=configs/pic.py:photos                minutes on a laptop, no download
  python -m conic_jax.main --config=configs/pic.py:cifar10 --config.data.dir=TFDS_DIR
  python -m conic_jax.main --config=configs/pic.py:folder --config.data.dir=IMAGES

The figures are linear top-1 on ImageNet as the authors' release publishes them, for multi-crop; it trains on
4 GPUs with 64 images each and gives no hours. A run of multi_crop evaluates views of 160 pixels; for those
figures' 224, configs/linear.py with --config.views.size=224 on its run. The release has a script for
multi-crop alone; the crop of the one view, at least a fifth of the image, is its options' default.

Changed: the release's sampler shuffles all images anew at nearly every window, so that neighbouring windows
do not overlap as the paper wants; ours do. It has neither recent negative sampling nor weight correction;
ours are ConIC-S's window, exact where float32 is. It passes each view alone through the network, we a group
of views at once, which shares its batch-norm statistics; and its rows start of unequal norms, N(0, 0.01²) in
each place, ours of their mean norm. Its warm-up begins at a hundredth of the rate, ours at the first step's
share of it. The linear protocol is configs/common.py's, as is what is not named here.
"""
from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """The release's settings; a preset changes what its data set needs."""
  config = common.pretraining('pic')

  # One view; small ones beside it where there is a count.
  config.views = common.views(count=1, size=224, crop=(0.08, 1.0))
  config.small_views = common.group({
    'count': 0,                   # small views an image
    'size': 96,                   # pixels a side
    'crop': (0.08, 0.14),         # area of the crop as a share of the image
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
    store='host')                 # where the other rows are

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
  """Windows as large a part of the data as of ImageNet's."""
  config.sampler.window, config.sampler.stride = 8_192, 1_024
  config.classifier.window = 4_096


def photos(config: ConfigDict) -> None:
  """Windows of two fifths of the data. Rows of so small a norm turn fast without a rate of their own."""
  config.sampler.window, config.sampler.stride = 1_024, 128
  config.classifier.window = 512


PRESETS = {'imagenet': release, 'multi_crop': multi_crop, 'imagenet100': release, 'cifar10': cifar10,
           'photos': photos, 'folder': photos}
