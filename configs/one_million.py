"""One-Million, "Train a One-Million-Way Instance Classifier for Unsupervised Visual Representation Learning".

  python -m conic_jax.main --config=configs/one_million.py               ImageNet, 200 epochs (Table 2: 68.2)
  python -m conic_jax.main --config=configs/one_million.py:1000          1000 epochs (Table 6: 71.4)
  python -m conic_jax.main --config=configs/one_million.py:no_prior      Table 2's other rows: no_prior,
                                                                         no_smoothing, no_mlp
  python -m conic_jax.main --config=configs/one_million.py:sampled_1024  Table 3: 1024, 4096, 16384, 65536
  python -m conic_jax.main --config=configs/one_million.py:photos        minutes on a laptop, no download
  python -m conic_jax.main --config=configs/one_million.py:cifar10 --config.data.dir=TFDS_DIR
  python -m conic_jax.main --config=configs/one_million.py:folder --config.data.dir=IMAGES

The paper trained on 64 V100 with 32 GB, 302 s an epoch of ImageNet-1K (Table 1); the figures are linear top-1
on ImageNet. Ours to choose, as the paper is silent: batch norm after both layers of the head, as in
configs/conic.py; crops of at least 15% of the image; SimCLR's colours at full strength. What is not named
here is as in configs/conic.py.
"""
from ml_collections import ConfigDict

from configs import auto, conic


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """The settings of "Implementation details"; a preset changes what its row or data set needs."""
  if preset not in PRESETS:
    raise ValueError(f"There is no preset '{preset}' of configs/one_million.py; there is: "
                     f"{', '.join(PRESETS)}.")
  config = conic.get_config(preset if preset in conic.PRESETS else 'imagenet')
  config.method = 'one_million'
  config.run = 'runs/one_million' if preset == 'imagenet' else f'runs/one_million_{preset}'
  del config.alpha, config.alpha_pace

  # Loss (Eq. 3) and labels (Eq. 2).
  config.temperature = 0.15
  config.smoothing = ConfigDict()
  config.smoothing.alpha = 0.2    # the label's share of the hardest classes; 0 is without smoothing
  config.smoothing.k = 100        # hardest classes an image
  config.smoothing.table = 'auto'  # found at each 'epoch' for all, or for each 'batch' (auto: above 10⁸)

  # Contrastive prior: rows start as the features of the random network.
  config.prior = ConfigDict()
  config.prior.batch_norm = 'running'     # or 'frozen' (Figure 4's "fixed BNs"), or 'none' for random rows
  config.prior.normalise = False          # the raw features
  config.prior.keep_statistics = True     # the pass's running statistics go on into training

  # Negatives: 0 is all, else as many are drawn anew at every step (Table 3).
  config.classifier.drawn = 0

  PRESETS[preset](config)
  if preset == 'folder':
    auto.leave_open(config)
  return config


def paper(config: ConfigDict) -> None:
  """The paper's optimizer."""
  config.batch_size = 4096
  config.optimizer.learning_rate = 0.48
  config.optimizer.warmup_epochs = 10
  config.linear.learning_rates = (40.0,)
  config.linear.batch_size = 2048


def long(config: ConfigDict) -> None:
  """Table 6."""
  paper(config)
  config.epochs = 1000


def no_prior(config: ConfigDict) -> None:
  """Table 2, without prior and without smoothing: 67.3."""
  no_smoothing(config)
  config.prior.batch_norm = 'none'


def no_smoothing(config: ConfigDict) -> None:
  """Table 2, with the prior alone: 67.6."""
  paper(config)
  config.smoothing.alpha = 0.0


def no_mlp(config: ConfigDict) -> None:
  """Table 2, one linear layer for the head: 58.6."""
  paper(config)
  config.head.hidden = 0


def sampled(count: int):
  """Table 3: so many negatives, without prior and without smoothing."""
  def preset(config: ConfigDict) -> None:
    no_prior(config)
    config.classifier.drawn = count
  return preset


def small(config: ConfigDict) -> None:
  """Data sets of a laptop: what configs/conic.py's preset says, with rows that start at unit norm.

  There are few steps, and a row of norm r turns 1/r² as fast.
  """
  config.prior.normalise = True


PRESETS = {'imagenet': paper, '1000': long, 'no_prior': no_prior, 'no_smoothing': no_smoothing,
           'no_mlp': no_mlp, **{f'sampled_{2 ** power}': sampled(2 ** power) for power in (10, 12, 14, 16)},
           'imagenet100': paper, 'cifar10': small, 'photos': small, 'folder': small}
