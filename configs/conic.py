"""ConIC, "Consistent Instance Classification for Unsupervised Representation Learning".

  python -m conic_jax.main --config=configs/conic.py                     the paper's ImageNet recipe
  python -m conic_jax.main --config=configs/conic.py:photos              minutes on a laptop, no download
  python -m conic_jax.main --config=configs/conic.py:cifar10 --config.data.dir=TFDS_DIR
  python -m conic_jax.main --config=configs/conic.py:imagenet100 --config.data.dir=IMAGES
  python -m conic_jax.main --config=configs/conic.py:folder --config.data.dir=IMAGES

The paper trained it on 8 V100 (batch 512, 200 epochs) and gives neither hours nor throughput. Our choices,
where the paper is silent: SimCLR's colour strengths, since Appendix E is not in the published text; rows that
start at norm 1; batch norm over both views of the whole batch at once. §4's formula for one image sums over
its two views and has 2(1 − sim) for the consistency; we use Eq. 2 and means, which keep the ratio of the
losses at two views. Set any field on the command line: --config.batch_size=1024, --config.views.size=160.
"""
from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """The settings of §4 and Appendix C.2; a preset changes what its data set requires."""
  config = common.with_preset(consistent(setting('conic')), 'conic', PRESETS, preset)
  if preset != 'imagenet':
    config.run = f'runs/{preset}'
  return config


def setting(method: str) -> ConfigDict:
  """Everything but the consistency loss; also used by the methods that the paper compares ConIC with."""
  config = common.pretraining(method)

  # Views (§4, "similar to SimCLR"; the colour strengths are SimCLR's, our reading of the missing Appendix E).
  config.views = common.views(
    count=2, size=224, crop=(0.15, 1.0), flip=0.5, grayscale=0.2, blur=0.5, jitter=0.8, strength=1.0,
    brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)

  # Network (§4): a head of Linear-BN-ReLU-Linear-BN.
  config.encoder = common.encoder(name='resnet50', stem='imagenet')
  config.head = common.head(hidden=2048, features=128, norm=True)

  # Instance classification (§3.2, §4).
  config.temperature = 0.1

  # Optimizer (§4), the same for the classifier's rows.
  config.batch_size = 512
  config.epochs = 200
  config.optimizer = common.optimizer(
    name='sgd', learning_rate=0.06, schedule='cosine', momentum=0.9, weight_decay=1e-4)
  config.classifier = common.classifier(norm=1.0, lr_scale=1.0, momentum=0.9, weight_decay=1e-4)

  # Evaluation after training (Appendix C.2); the batch is ours.
  config.linear = common.linear(learning_rates=(75.0,), epochs=100, batch_size=512, schedule='cosine')
  return config


def consistent(config: ConfigDict) -> ConfigDict:
  """The consistency loss (§3.2, §4)."""
  config.alpha = 2.5
  config.alpha_pace = 0.0         # 0: α from the start; c: α · min(1, c (1 − ℓs/log N))
  return config


def fast_rows(config: ConfigDict) -> None:
  """Each row is visited once per epoch and there are few epochs, so rows learn faster than the encoder."""
  config.classifier.lr_scale = 30.0


def photos(config: ConfigDict) -> None:
  """The consistency loss ramps up as the rows learn."""
  fast_rows(config)
  config.alpha_pace = 4.0


PRESETS = {**common.PLAIN, 'photos': photos}
