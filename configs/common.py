"""The groups of settings that configs are made of: every field, what it means, and a value that suits many.

A config takes the groups that it needs and names what its paper gives, even where it is the same here. To set
a field that a group does not have is an error, as it is most likely misspelt. To add one on purpose:

  config.bank = common.group({'momentum': 0.5})       a group of its own, while the config is made
  config.classifier = common.group({**common.classifier(), 'drawn': 0})
  with config.unlocked():                             in what another config's `get_config` gives
    config.optimizer.nesterov = True
"""
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import auto

# ---- Groups -----------------------------------------------------------------------------------


def group(fields: dict, given: dict | None = None) -> ConfigDict:
  """A group of settings that takes no other fields.

  Args:
    fields: all of them, with their values.
    given: values instead.
  """
  settings = ConfigDict(fields).lock()
  settings.update(given or {})
  return settings


def run(**given) -> ConfigDict:
  """The run, of the config itself."""
  return group({
    'task': 'pretrain',           # pretrain; knn, linear, finetune, svm and segment have configs of their own
    'method': '',                 # a file of conic_jax/methods
    'run': '',                    # the folder of checkpoints, figures and metrics; resumed if it exists
    'seed': 0,                    # of everything random
    'num_instances': 0,           # N for the plan command; 0 is the images of the data set
  }, given)


def data(**given) -> ConfigDict:
  """The images."""
  return group({
    'name': 'imagenet2012',       # a TFDS name, 'folder' or 'photos'
    'dir': '',                    # TFDS's data_dir, or the folder of images; local or gs://
    'train': 'train',             # a TFDS split expression, or a subfolder ('' is the folder itself)
    'test': 'validation',         # for kNN and the linear protocol; '' without
    'cache': '',                  # offset indexes of TFRecord; '' is ~/.cache/conic_jax
  }, given)


def sampler(**given) -> ConfigDict:
  """Which images make up a batch."""
  return group({
    'window': 0,                  # PIC's sliding window, in images; 0 is every image once an epoch
    'stride': 0,                  # images that a window moves on by
  }, given)


def views(**given) -> ConfigDict:
  """What is drawn of an image; the colour strengths are SimCLR's at `strength` 1."""
  return group({
    'count': 2,                   # views an image
    'size': 224,                  # pixels a side
    'crop': (0.15, 1.0),          # smallest and largest area of the crop as a share of the image
    'aspect': (3 / 4, 4 / 3),     # narrowest and widest crop, width to height
    'overlap': 0.0,               # least share of the smaller of two crops that both have; 0: may lie apart
    'interpolation': 'bilinear',  # or 'bicubic', as TensorFlow's without antialiasing
    'flip': 0.5,                  # probability of a horizontal flip
    'jitter': 0.8,                # probability of the colour jitter
    'strength': 1.0,              # factor on its four ranges
    'colour': 'torchvision',      # or 'tensorflow': contrast of each channel, saturation in HSV
    'additive_brightness': False,  # brightness is added; else it is a factor
    'brightness': 0.8,            # range of the brightness
    'contrast': 0.8,              # range of the contrast
    'saturation': 0.8,            # range of the saturation
    'hue': 0.2,                   # range of the hue, a share of the colour circle
    'grayscale': 0.2,             # probability of dropping the colour
    'blur': 0.5,                  # probability of the Gaussian blur
    'blur_sigma': (0.1, 2.0),     # range of its standard deviation, in pixels
    'blur_kernel': 0.1,           # width of its kernel as a share of the side
    'solarise': 0.0,              # probability of inverting what is at least 0.5
    'mean': (0.485, 0.456, 0.406),  # of the channels, 0 to 1: subtracted; ImageNet's
    'std': (0.229, 0.224, 0.225),   # of the channels: divided by
  }, given)


def encoder(**given) -> ConfigDict:
  """The network that is kept."""
  return group({
    'name': 'resnet50',           # a ResNet: resnet18, resnet34, resnet50, resnet101, resnet152
    'blocks': (),                 # blocks of each stage; () is the network's own
    'stem': 'imagenet',           # or 'cifar', for small images
    'width': 1.0,                 # factor on the channels
    'zero_gamma': False,          # blocks start as the identity
    'output_stride': 32,          # pixels of the image a pixel of the last map; 8 and 16 dilate instead
  }, given)


def head(**given) -> ConfigDict:
  """The projection head, which is left off after pretraining."""
  return group({
    'hidden': 2048,               # width of the hidden layer; 0 is one linear layer
    'features': 128,              # D
    'norm': True,                 # batch norm: Linear-BN-ReLU-Linear-BN
    'output_bias': True,          # of the last layer: the batch norm, or the linear one where none follows
  }, given)


def length(**given) -> ConfigDict:
  """How long training is, of the config itself."""
  return group({
    'batch_size': 512,            # images a step, over all devices
    'epochs': 200,                # passes over the images
    'minutes': 0.0,               # what open epochs (auto) are to take; 0 is no limit
    'max_steps': 0,               # stop after so many steps; 0 is all
  }, given)


def optimizer(**given) -> ConfigDict:
  """How the network learns."""
  return group({
    'name': 'sgd',                # or 'lars'
    'learning_rate': 0.06,        # for this batch; it is not scaled
    'warmup_epochs': 0.0,         # epochs in which the rate rises
    'schedule': 'cosine',         # or 'steps'
    'end': 0.0,                   # the cosine's last rate
    'milestones': (),             # epochs where the rate of 'steps' is divided by 10
    'per_epoch': False,           # the rate changes at the start of an epoch only
    'momentum': 0.9,              # of SGD and of lars
    'weight_decay': 1e-4,         # of SGD and of lars
    'decay_vectors': True,        # weight decay on biases and batch norm too, as PyTorch's SGD
    'trust': 0.001,               # of lars, which leaves biases and batch norm out of it
    'lr_in_momentum': True,       # of lars: the rate is inside the momentum, or outside
  }, given)


def classifier(**given) -> ConfigDict:
  """The rows, one an image, and how they learn."""
  return group({
    'norm': 1.0,                  # of the rows at the start
    'lr_scale': 1.0,              # their learning rate as a multiple of the network's
    'momentum': 0.9,              # of their SGD
    'weight_decay': 1e-4,         # of their SGD
    'chunk_size': 0,              # rows scored at a time; 0 is what suits the device
  }, given)


def windowed_classifier(**given) -> ConfigDict:
  """The rows where the softmax is over a window of them."""
  return group({
    **classifier(),
    'window': 65_536,             # N′, classes in the softmax
    'beta': 0.0,                  # weight of each negative; 0 is (N − 1)/(N′ − 1)
    'store': 'host',              # where the other rows are: 'device', 'host' (memory) or 'disk'
  }, given)


def momentum(**given) -> ConfigDict:
  """The encoder that is a moving average."""
  return group({
    'start': 0.999,               # share of itself that it keeps
    'schedule': 'constant',       # or 'cosine', to 1
  }, given)


def hardware(**given) -> ConfigDict:
  """The hardware, of the config itself."""
  return group({
    'dtype': 'auto',              # float32, bfloat16, float16; auto takes what the device is good at
    'mesh': {'data': -1},         # devices along each axis; -1 is all that are left
  }, given)


def reports(**given) -> ConfigDict:
  """When a run reports, of the config itself."""
  return group({
    'log_every': 50,              # steps
    'knn_every': 10,              # epochs between two online kNN; 0 is never
  }, given)


def checkpoint(**given) -> ConfigDict:
  """When a run saves."""
  return group({
    'every_epochs': 1.0,          # epochs from one to the next
    'keep': 3,                    # at least two are kept: the newest may turn out bad
  }, given)


def probe(**given) -> ConfigDict:
  """Measures without labels while training."""
  return group({
    'images': 2000,               # at most so many training images; fewer in a short run; 0 turns it off
    'times': 12,                  # a run, evenly spread, the first after 2% of it
  }, given)


def evaluated(**given) -> ConfigDict:
  """What is measured after training, `config.eval`."""
  return group({
    'knn': True,                  # measure kNN
    'linear': True,               # measure the linear protocol
    'baselines': False,           # the same for raw pixels and for the network at random
    'baseline_weights': '',       # and for published weights: a file, as --config.encoder of evaluations
    'resize': 0,                  # the short side before a centre crop of views.size; 0 is 256/224 of it
    'batch_size': 512,            # images encoded at a time
    'k': (20, 200),               # the first is the headline
    'features': 'encoder',        # what kNN compares: features of the 'encoder' or of the 'head'
  }, given)


def linear(**given) -> ConfigDict:
  """The linear protocol."""
  return group({
    'learning_rates': (75.0,),    # several are a sweep
    'epochs': 100,                # passes over the training images
    'batch_size': 512,            # images a step
    'momentum': 0.9,              # of SGD, without weight decay
    'schedule': 'cosine',         # or 'steps'
    'milestones': (),             # shares of the training where the rate of 'steps' is divided by 10
    'normalise': 'none',          # or 'l2', 'standardise' (features that are large or small)
    'crop': (0.08, 1.0),          # area of the training crop as a share of the image
  }, given)


def finetune(**given) -> ConfigDict:
  """Fine-tuning for classification."""
  return group({
    'learning_rate': 0.01,        # of the encoder
    'head_learning_rate': 0.1,    # of the new linear layer
    'epochs': 100,                # passes over the images that are used
    'batch_size': 256,            # images a step
    'momentum': 0.9,              # of SGD
    'weight_decay': 1e-4,         # of all layers
    'schedule': 'cosine',         # or 'steps'
    'milestones': (),             # shares of the training where 'steps' divides the rates by 10
    'crop': (0.08, 1.0),          # area of the training crop as a share of the image
    'labels': 1.0,                # share of the labels that is used; 1 is all images
  }, given)


# ---- Whole configs ----------------------------------------------------------------------------


def pretraining(method: str) -> ConfigDict:
  """What every pretraining has, for its config to name what is its paper's and to add what is its own."""
  config = ConfigDict({**run(method=method), **length(), **hardware(), **reports()})
  config.data, config.sampler, config.views = data(), sampler(), views()
  config.encoder, config.head, config.optimizer = encoder(), head(), optimizer()
  config.checkpoint, config.probe = checkpoint(), probe()
  config.eval, config.linear = evaluated(), linear()
  return config


def evaluation(task: str, result: str) -> ConfigDict:
  """What every evaluation of an encoder has."""
  return ConfigDict({
    'task': task,
    'result': result,             # name of the JSON file of figures
    'encoder': '',                # a run folder, a file of weights, or random
    'run': '',                    # where the result goes; '' is the encoder's run, or runs/evaluated_NAME
    'seed': 0,                    # of everything random
    **hardware(),
    'data': data(name='', train='', test=''),   # '' is the encoder's run's
    'network': encoder(),         # of a random encoder
  })


def classification(task: str, result: str, data_set: str) -> ConfigDict:
  """An evaluation on classes of images, of a data set or, where that is 'run', of the encoder's own."""
  config = evaluation(task, result)
  # What is None is taken from the encoder's run.
  config.views = group({
    'size': placeholder(int),     # pixels a side
  })
  config.eval = group({
    'resize': placeholder(int),   # the short side before a centre crop of views.size; 0 is 256/224 of it
    'batch_size': placeholder(int),   # images encoded at a time
  })
  if data_set == 'run':
    return config
  config.views.size, config.eval.resize, config.eval.batch_size = 224, 256, 512
  config.data.update(name='imagenet2012', train='train', test='validation')
  if data_set == 'folder':
    config.data.update(name='folder', test='val')
  if data_set in ('cifar10', 'photos'):
    config.data.update(name=data_set, test='test')
    config.views.size, config.eval.resize = 32, 32
    config.network.update(name='resnet18', stem='cifar')
  if data_set == 'photos':
    config.network.update(stem='imagenet', blocks=(2, 2), width=0.75)
    config.eval.batch_size = 128
  return config


# ---- Presets ----------------------------------------------------------------------------------


def check(name: str, presets: dict | tuple, preset: str) -> None:
  """Raises a `ValueError` where configs/NAME.py has no such preset."""
  if preset not in presets:
    raise ValueError(f"There is no preset '{preset}' of configs/{name}.py; available: {', '.join(presets)}.")


def with_preset(config: ConfigDict, name: str, presets: dict, preset: str) -> ConfigDict:
  """A pretraining's config with a preset: what its data set needs, and then what the preset itself changes.

  Args:
    config: with all its fields.
    name: of the config's file.
    presets: what each changes, beside what the data sets of `DATA_SETS` do.
    preset: the one asked for; of `folder` the fields of configs/auto.py stay open.

  Returns:
    The config, which takes no new fields from now on.

  Raises:
    ValueError: where there is no such preset.
  """
  check(name, presets, preset)
  config.run = f'runs/{name}' if preset == 'imagenet' else f'runs/{name}_{preset}'
  DATA_SETS.get(preset, imagenet)(config)
  presets[preset](config)
  if preset == 'folder':
    auto.leave_open(config)
  return config.lock()


def imagenet(config: ConfigDict) -> None:
  """ImageNet of TFDS, as the groups have it."""


def imagenet100(config: ConfigDict) -> None:
  """A hundred classes of ImageNet, as the usual folder: train/CLASS/*.JPEG and val/CLASS/*.JPEG."""
  config.data.update(name='folder', test='val')
  config.knn_every = 5


def cifar10(config: ConfigDict) -> None:
  """CIFAR-10 with the small stem and no blur."""
  config.data.update(name='cifar10', test='test')
  config.views.update(size=32, blur=0.0, strength=0.5)
  config.encoder.update(name='resnet18', stem='cifar')
  if config.head.hidden:
    config.head.hidden = 512
  config.knn_every = 1
  config.eval.resize = 32
  config.linear.learning_rates = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def photos(config: ConfigDict) -> None:
  """Patches of the photographs inside scikit-image and scikit-learn: no download, minutes on a CPU.

  Colour tells photographs apart, so the jitter is mild.
  """
  cifar10(config)
  config.data.name = 'photos'
  config.views.update(strength=0.2, grayscale=0.1)
  config.encoder.update(stem='imagenet', blocks=(2, 2), width=0.75)
  config.batch_size = 128
  config.epochs = 15
  config.optimizer.warmup_epochs = 1
  config.log_every = 20
  config.checkpoint.every_epochs = 5.0
  config.knn_every = 5
  config.eval.update(baselines=True, batch_size=128)
  config.linear.update(epochs=10, batch_size=128)


def folder(config: ConfigDict) -> None:
  """Your own images, with settings for as many and such: `configs/auto.py` names what is left open.

  A flat or nested folder, one folder a class, or train/ and val/ of such.
  """
  config.data.name = 'folder'
  config.eval.baselines = True


DATA_SETS = {'imagenet': imagenet, 'imagenet100': imagenet100, 'cifar10': cifar10, 'photos': photos,
             'folder': folder}


def unchanged(config: ConfigDict) -> None:
  """A preset that is its data set alone."""


PLAIN = dict.fromkeys(DATA_SETS, unchanged)
