"""ConIC, "Consistent Instance Classification for Unsupervised Representation Learning".

  python -m conic_jax.main --config=configs/conic.py                     the paper's ImageNet recipe
  python -m conic_jax.main --config=configs/conic.py:photos              minutes on a laptop, no download
  python -m conic_jax.main --config=configs/conic.py:cifar10 --config.data.dir=TFDS_DIR
  python -m conic_jax.main --config=configs/conic.py:imagenet100 --config.data.dir=IMAGES
  python -m conic_jax.main --config=configs/conic.py:folder --config.data.dir=IMAGES

The paper trained it on 8 V100 (batch 512, 200 epochs) and gives neither hours nor throughput. Ours to choose,
as it is silent: the colours' strengths, SimCLR's, as its Appendix E is not in the published text; rows that
start at norm 1; batch norm over both views of the whole batch at once. §4's formula for one image sums over
its two views and has 2(1 − sim) for the consistency; ours are Eq. 2 and means, which keep the ratio of the
losses at two views. Any field is set on the command line: --config.batch_size=1024, --config.views.size=160.
"""
from ml_collections import ConfigDict

from configs import auto


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """The settings of §4 and Appendix C.2; a preset changes what its data set needs."""
  config = ConfigDict()
  config.task = 'pretrain'
  config.method = 'conic'
  config.run = 'runs/conic'       # the folder of checkpoints, figures and metrics; resumed if it exists
  config.seed = 0
  config.num_instances = 0        # N for the plan command; 0 is the images of the data set

  # Data: a TFDS name, 'folder' or 'photos'.
  config.data = ConfigDict()
  config.data.name = 'imagenet2012'
  config.data.dir = ''            # TFDS's data_dir, or the folder of images; local or gs://
  config.data.train = 'train'     # a TFDS split expression, or a subfolder ('' is the folder itself)
  config.data.test = 'validation'  # for kNN and the linear protocol; '' without
  config.data.cache = ''          # offset indexes of TFRecord; '' is ~/.cache/conic_jax

  # Which images make up a batch.
  config.sampler = ConfigDict()
  config.sampler.window = 0       # PIC's sliding window, in images; 0 is every image once an epoch
  config.sampler.stride = 0       # images that a window moves on by

  # Views (§4; the colour strengths are SimCLR's, our reading of the missing Appendix E).
  config.views = ConfigDict()
  config.views.count = 2
  config.views.size = 224
  config.views.crop = (0.15, 1.0)
  config.views.interpolation = 'bilinear'     # or 'bicubic', as TensorFlow's without antialiasing
  config.views.flip = 0.5
  config.views.jitter = 0.8
  config.views.strength = 1.0
  config.views.colour = 'torchvision'     # or 'tensorflow': contrast of each channel, saturation in HSV
  config.views.additive_brightness = False    # brightness is added; else it is a factor
  config.views.grayscale = 0.2
  config.views.blur = 0.5

  # Network (§4).
  config.encoder = ConfigDict()
  config.encoder.name = 'resnet50'
  config.encoder.blocks = ()      # blocks of each stage; () is the network's own
  config.encoder.stem = 'imagenet'
  config.encoder.width = 1.0
  config.encoder.zero_gamma = False
  config.encoder.output_stride = 32
  config.head = ConfigDict()
  config.head.hidden = 2048
  config.head.features = 128
  config.head.norm = True         # Linear-BN-ReLU-Linear-BN
  config.head.output_bias = True  # of the last layer: the batch norm, or the linear one where none follows

  # Losses (§3.2, §4).
  config.temperature = 0.1
  config.alpha = 2.5
  config.alpha_pace = 0.0         # 0: α from the start; c: α · min(1, c (1 − ℓs/log N))

  # Optimizer (§4), the same for the classifier's rows.
  config.batch_size = 512
  config.epochs = 200
  config.minutes = 0.0            # what open epochs (auto) are to take; 0 is no limit
  config.max_steps = 0            # stop after so many steps; 0 is all
  config.optimizer = ConfigDict()
  config.optimizer.name = 'sgd'   # or 'lars'
  config.optimizer.learning_rate = 0.06
  config.optimizer.warmup_epochs = 0.0
  config.optimizer.schedule = 'cosine'    # or 'steps'
  config.optimizer.end = 0.0      # the cosine's last rate
  config.optimizer.milestones = ()        # epochs where the rate of 'steps' is divided by 10
  config.optimizer.per_epoch = False      # the rate changes at the start of an epoch only
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 1e-4
  config.optimizer.decay_vectors = True   # weight decay on biases and batch norm too, as PyTorch's SGD
  config.optimizer.trust = 0.001  # of lars, which leaves biases and batch norm out of it
  config.optimizer.lr_in_momentum = True  # of lars: the rate is inside the momentum, or outside
  config.classifier = ConfigDict()
  config.classifier.norm = 1.0    # of the rows at the start
  config.classifier.lr_scale = 1.0
  config.classifier.momentum = 0.9
  config.classifier.weight_decay = 1e-4
  config.classifier.chunk_size = 0    # rows scored at a time; 0 is what suits the device

  # Hardware.
  config.dtype = 'auto'           # float32, bfloat16, float16; auto takes what the device is good at
  config.mesh = ConfigDict({'data': -1})

  # Reports and checkpoints.
  config.log_every = 50           # steps
  config.checkpoint = ConfigDict()
  config.checkpoint.every_epochs = 1.0
  config.checkpoint.keep = 3      # at least two are kept: the newest may turn out bad
  config.probe = ConfigDict()     # measures without labels while training
  config.probe.images = 2000      # at most so many training images; fewer in a short run; 0 turns it off
  config.probe.times = 12         # a run, evenly spread, the first after 2% of it
  config.knn_every = 10           # epochs between two online kNN; 0 is never

  # Evaluation after training (Appendix C.2).
  config.eval = ConfigDict()
  config.eval.knn = True
  config.eval.linear = True
  config.eval.baselines = False   # the same for raw pixels and for the network at random
  config.eval.baseline_weights = ''   # and for published weights: a file, as --config.encoder of evaluations
  config.eval.resize = 0          # the short side before a centre crop of views.size; 0 is 256/224 of it
  config.eval.batch_size = 512
  config.eval.k = (20, 200)       # the first is the headline
  config.eval.features = 'encoder'    # what kNN compares: features of the 'encoder' or of the 'head'
  config.linear = ConfigDict()
  config.linear.learning_rates = (75.0,)  # several are a sweep
  config.linear.epochs = 100
  config.linear.batch_size = 512
  config.linear.schedule = 'cosine'       # or 'steps'
  config.linear.milestones = ()           # shares of the training where the rate of 'steps' is divided by 10
  config.linear.normalise = 'none'

  if preset not in PRESETS:
    raise ValueError(f"There is no preset '{preset}' of configs/conic.py; there is: {', '.join(PRESETS)}.")
  PRESETS[preset](config)
  if preset == 'folder':
    auto.leave_open(config)
  return config


def imagenet(config: ConfigDict) -> None:
  """The paper's own."""


def imagenet100(config: ConfigDict) -> None:
  """A hundred classes of ImageNet, as the usual folder: train/CLASS/*.JPEG and val/CLASS/*.JPEG."""
  config.run = 'runs/imagenet100'
  config.data.name = 'folder'
  config.data.test = 'val'
  config.knn_every = 5


def cifar10(config: ConfigDict) -> None:
  """CIFAR-10 with the small stem and no blur."""
  config.run = 'runs/cifar10'
  config.data.name = 'cifar10'
  config.data.test = 'test'
  config.views.size = 32
  config.views.blur = 0.0
  config.views.strength = 0.5
  config.encoder.name = 'resnet18'
  config.encoder.stem = 'cifar'
  config.head.hidden = 512
  config.knn_every = 1
  config.eval.resize = 32
  config.linear.learning_rates = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def photos(config: ConfigDict) -> None:
  """Patches of the photographs inside scikit-image and scikit-learn: no download, minutes on a CPU.

  A row is seen once an epoch and there are few epochs, so the rows learn faster than the encoder, and the
  consistency loss waits for them; colour tells photographs apart, so the jitter is mild.
  """
  cifar10(config)
  config.run = 'runs/photos'
  config.data.name = 'photos'
  config.views.strength = 0.2
  config.views.grayscale = 0.1
  config.encoder.stem = 'imagenet'
  config.encoder.blocks = (2, 2)
  config.encoder.width = 0.75
  config.batch_size = 128
  config.epochs = 15
  config.optimizer.warmup_epochs = 1
  config.classifier.lr_scale = 30.0
  config.alpha_pace = 4.0
  config.log_every = 20
  config.checkpoint.every_epochs = 5.0
  config.knn_every = 5
  config.eval.baselines = True
  config.eval.batch_size = 128
  config.linear.epochs = 10
  config.linear.batch_size = 128


def folder(config: ConfigDict) -> None:
  """Your own images, with settings for as many and such: `configs/auto.py` names what is left open.

  A flat or nested folder, one folder a class, or train/ and val/ of such.
  """
  config.run = 'runs/folder'
  config.data.name = 'folder'
  config.eval.baselines = True


PRESETS = {'imagenet': imagenet, 'imagenet100': imagenet100, 'cifar10': cifar10, 'photos': photos,
           'folder': folder}
