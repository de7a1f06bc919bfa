"""One-Million, "Train a One-Million-Way Instance Classifier for Unsupervised Visual Representation Learning".

  python -m conic_jax.main --config=configs/one_million.py               ImageNet, 200 epochs (Table 2: 68.2)
  python -m conic_jax.main --config=configs/one_million.py:1000          1000 epochs (Table 6: 71.4)
  python -m conic_jax.main --config=configs/one_million.py:no_prior      Table 2's other rows: no_prior,
                                                                         no_smoothing, no_mlp
  python -m conic_jax.main --config=configs/one_million.py:sampled_1024  Table 3: 1024, 4096, 16384, 65536
  python -m conic_jax.main --config=configs/one_million.py:photos        minutes on a laptop, no download
  python -m conic_jax.main --config=configs/one_million.py:cifar10 --config.data.dir=TFDS_DIR
  python -m conic_jax.main --config=configs/one_million.py:folder --config.data.dir=IMAGES

The paper trained on 64 V100 with 32 GB, at 302 s per epoch of ImageNet-1K (Table 1); the figures are linear
top-1 on ImageNet. Our choices, where the paper is silent: batch norm after both layers of the head, as in
configs/conic.py; crops of at least 15% of the image; SimCLR's colours at full strength. Whatever is not named
here is as in configs/common.py.
"""
from ml_collections import ConfigDict

from configs import common, conic


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """The settings of "Implementation details"; a preset changes what its row or data set requires."""
  config = setting('one_million')

  # Labels (Eq. 2).
  config.smoothing = common.group({
    'alpha': 0.2,                 # share of the label given to the hardest classes; 0 is no smoothing
    'k': 100,                     # hardest classes per image
    'table': 'auto',              # found per 'epoch' for all, or per 'batch' (auto: above 10⁸ images)
    'search': 'exact',            # of the table of an epoch; 'approximate' costs a fifth of the products
  })

  # Contrastive prior: rows start as features of the random network.
  config.prior = common.group({
    'batch_norm': 'running',      # or 'frozen' (Figure 4's "fixed BNs"), or 'none' for random rows
    'normalise': False,           # False keeps the raw features
    'keep_statistics': True,      # carry the pass's running statistics over into training
  })

  # Negatives (Table 3).
  config.classifier = common.group({
    **config.classifier.to_dict(),
    'drawn': 0,                   # number of negatives drawn anew in every step; 0 is all
  })
  return common.with_preset(config, 'one_million', PRESETS, preset)


def setting(method: str) -> ConfigDict:
  """The classifier alone (Eq. 3); also used by the baseline of Table 1."""
  config = common.pretraining(method)
  config.views = common.views(count=2, size=224)
  config.encoder = common.encoder(name='resnet50')
  config.head = common.head(features=128, norm=True)
  config.temperature = 0.15
  config.epochs = 200
  config.optimizer = common.optimizer(name='sgd', schedule='cosine', momentum=0.9, weight_decay=1e-4)
  config.classifier = common.classifier(momentum=0.9, weight_decay=1e-4)
  return config


def optimizer(config: ConfigDict) -> None:
  """The paper's batch and rates."""
  config.batch_size = 4096
  config.optimizer.learning_rate = 0.48
  config.optimizer.warmup_epochs = 10
  config.linear.learning_rates = (40.0,)
  config.linear.batch_size = 2048


def long(config: ConfigDict) -> None:
  """Table 6."""
  optimizer(config)
  config.epochs = 1000


def no_prior(config: ConfigDict) -> None:
  """Table 2, without prior and without smoothing: 67.3."""
  no_smoothing(config)
  config.prior.batch_norm = 'none'


def no_smoothing(config: ConfigDict) -> None:
  """Table 2, with the prior alone: 67.6."""
  optimizer(config)
  config.smoothing.alpha = 0.0


def no_mlp(config: ConfigDict) -> None:
  """Table 2, one linear layer for the head: 58.6."""
  optimizer(config)
  config.head.hidden = 0


def sampled(count: int):
  """Table 3: this many negatives, without prior and without smoothing."""
  def preset(config: ConfigDict) -> None:
    no_prior(config)
    config.classifier.drawn = count
  return preset


def small(config: ConfigDict) -> None:
  """Laptop-sized data sets: rows start at unit norm.

  There are few steps, and a row of norm r turns 1/r² times as fast.
  """
  config.prior.normalise = True


def photos(config: ConfigDict) -> None:
  """The rows learn fast as well."""
  small(config)
  conic.fast_rows(config)


PRESETS = {'imagenet': optimizer, '1000': long, 'no_prior': no_prior, 'no_smoothing': no_smoothing,
           'no_mlp': no_mlp, **{f'sampled_{2 ** power}': sampled(2 ** power) for power in (10, 12, 14, 16)},
           'imagenet100': optimizer, 'cifar10': small, 'photos': photos, 'folder': small}
