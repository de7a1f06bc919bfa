"""The groups of settings that configs are made of: every field, its meaning, and a common default.

Their types and ranges are in conic_jax/fields.py; --help beside --config prints all of them.

A config takes the groups that it needs and states what its paper gives, even if that is the default. Setting
a field that a group does not have is an error, since it is most likely misspelt. To add a field on purpose:

  config.bank = common.group({'momentum': 0.5})       a new group, while building the config
  config.classifier = common.group({**common.classifier(), 'drawn': 0})
  with config.unlocked():                             in a config returned by another `get_config`
    config.optimizer.nesterov = True
"""
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import auto

# ---- Groups -----------------------------------------------------------------------------------


def group(fields: dict, given: dict | None = None) -> ConfigDict:
  """A group of settings that accepts no other fields.

  Args:
    fields: all fields, with their default values.
    given: values that replace the defaults.
  """
  settings = ConfigDict(fields).lock()
  settings.update(given or {})
  return settings


def run(**given) -> ConfigDict:
  """The run; these fields are at the top level of the config."""
  return group({
    'task': 'pretrain',           # pretrain; knn, linear, finetune, svm and segment have their own configs
    'method': '',                 # a file of conic_jax/methods
    'run': '',                    # folder, also gs:// or s3://, for all that it writes; resumed if it exists
    'seed': 0,                    # for everything random
    'num_instances': 0,           # N for the plan command; 0 is the number of images in the data set
  }, given)


def data(**given) -> ConfigDict:
  """The images."""
  return group({
    'name': 'imagenet2012',       # a TFDS name, 'folder', 'wds', 'parquet', 'list' or 'photos'
    'dir': '',                    # the folder, file or pattern of images, or TFDS's data_dir; local or gs://
    'train': 'train',             # a TFDS split expression, a subfolder, a part of files' names; '' is all
    'test': 'validation',         # for kNN and the linear protocol; '' for none
    'image': '',                  # feature of a TFDS set, column, or ending in tars; '' if there is no doubt
    'label': '',                  # likewise; 'none' for no labels
    'cache': '',                  # folder for indexes of TFRecords, tars, …; '' is ~/.cache/conic_jax
  }, given)


def sampler(**given) -> ConfigDict:
  """Which images make up a batch."""
  return group({
    'window': 0,                  # PIC's sliding window, in images; 0 is every image once per epoch
    'stride': 0,                  # images that the window advances by
  }, given)


def views(**given) -> ConfigDict:
  """How views of an image are drawn; the colour strengths are SimCLR's at `strength` 1."""
  return group({
    'count': 2,                   # views per image
    'size': 224,                  # pixels per side
    'crop': (0.15, 1.0),          # smallest and largest crop area, as a share of the image
    'aspect': (3 / 4, 4 / 3),     # narrowest and widest crop, width over height
    'overlap': 0.0,               # least overlap of two crops, as a share of the smaller; 0: none needed
    'interpolation': 'bilinear',  # or 'bicubic', TensorFlow's without antialiasing
    'flip': 0.5,                  # probability of a horizontal flip
    'jitter': 0.8,                # probability of the colour jitter
    'strength': 1.0,              # factor on the jitter's four ranges
    'colour': 'torchvision',      # or 'tensorflow': contrast per channel, saturation in HSV
    'additive_brightness': False,  # add the brightness, rather than multiply by it
    'brightness': 0.8,            # range of the brightness
    'contrast': 0.8,              # range of the contrast
    'saturation': 0.8,            # range of the saturation
    'hue': 0.2,                   # range of the hue, as a share of the colour circle
    'grayscale': 0.2,             # probability of dropping the colour
    'blur': 0.5,                  # probability of the Gaussian blur
    'blur_sigma': (0.1, 2.0),     # range of its standard deviation, in pixels
    'blur_kernel': 0.1,           # width of its kernel, as a share of the side
    'solarise': 0.0,              # probability of inverting pixels of at least 0.5
    'mean': (0.485, 0.456, 0.406),  # subtracted from the channels, which are 0 to 1; ImageNet's
    'std': (0.229, 0.224, 0.225),   # the channels are divided by this
  }, given)


def encoder(**given) -> ConfigDict:
  """The network that is kept after pretraining, and what it starts from."""
  return group({
    **network(),
    'weights': '',                # a file or a run that training starts from; '' is a random encoder
  }, given)


def network(**given) -> ConfigDict:
  """The network of an encoder."""
  return group({
    'name': 'resnet50',           # resnet18 to resnet152, vit_tiny, _small, _base, convnext_tiny, _small
    'blocks': (),                 # blocks per stage; () is the network's own
    'stem': 'imagenet',           # or 'cifar', for small images
    'width': 1.0,                 # factor on the channels
    'zero_gamma': False,          # blocks start as the identity
    'output_stride': 32,          # image pixels per pixel of the last map; 8 and 16 dilate instead
    'patch': 0,                   # side of a ViT's or ConvNeXt's patches; 0: 16, 4; stem cifar: 4, 1
    'positions': 'sincos',        # of a ViT's patches: fixed, for any size, or 'learned'
    'frozen_patches': False,      # whether a ViT's patches keep their random projection, which is stabler
    'remat': False,               # compute the blocks again for the gradients: slower, saves memory
  }, given)


def head(**given) -> ConfigDict:
  """The projection head, which is dropped after pretraining."""
  return group({
    'hidden': 2048,               # width of the hidden layer; 0 is one linear layer
    'features': 128,              # D
    'norm': True,                 # batch norm: Linear-BN-ReLU-Linear-BN
    'output_bias': True,          # bias of the last layer: the batch norm, or the linear one without norm
  }, given)


def length(**given) -> ConfigDict:
  """Length of training; these fields are at the top level of the config."""
  return group({
    'batch_size': 512,            # images per step, over all devices
    'accumulate': 1,              # parts of a batch, taken one after the other to save memory
    'epochs': 200,                # passes over the images
    'minutes': 0.0,               # time for open epochs (auto); 0 is no limit
    'max_steps': 0,               # stop after this many steps; 0 runs all
  }, given)


def optimizer(**given) -> ConfigDict:
  """How the network learns."""
  return group({
    'name': 'sgd',                # or 'lars', 'adamw'
    'learning_rate': 0.06,        # for this batch size; never rescaled
    'warmup_epochs': 0.0,         # epochs during which the rate rises
    'schedule': 'cosine',         # or 'steps'
    'end': 0.0,                   # last rate of the cosine
    'milestones': (),             # epochs at which 'steps' divides the rate by 10
    'per_epoch': False,           # change the rate only at the start of an epoch
    'momentum': 0.9,              # of sgd and lars; β₁ of adamw
    'beta2': 0.999,               # β₂ of adamw
    'weight_decay': 1e-4,         # of sgd and lars; of adamw times the rate alone, where 0.05 is usual
    'decay_vectors': True,        # weight decay on biases and batch norm too, as in PyTorch's SGD
    'trust': 0.001,               # trust ratio of lars; not applied to biases and batch norm
    'lr_in_momentum': True,       # for lars: apply the rate inside the momentum, rather than outside
  }, given)


def classifier(**given) -> ConfigDict:
  """The rows, one per image, and how they learn."""
  return group({
    'norm': 1.0,                  # initial norm of the rows
    'lr_scale': 1.0,              # their learning rate, as a multiple of the network's
    'momentum': 0.9,              # of their SGD
    'weight_decay': 1e-4,         # of their SGD
    'chunk_size': 0,              # rows scored at a time; 0 chooses for the device
  }, given)


def windowed_classifier(**given) -> ConfigDict:
  """The rows, when the softmax is over a window of them."""
  return group({
    **classifier(),
    'window': 65_536,             # N′, classes in the softmax
    'beta': 0.0,                  # weight of each negative; 0 is (N − 1)/(N′ − 1)
    'store': 'host',              # where the other rows are: 'device', 'host' (memory) or 'disk'
  }, given)


def momentum(**given) -> ConfigDict:
  """The momentum encoder, a moving average."""
  return group({
    'start': 0.999,               # share of itself kept in each step
    'schedule': 'constant',       # or 'cosine', which rises to 1
  }, given)


def hardware(**given) -> ConfigDict:
  """The hardware; these fields are at the top level of the config."""
  return group({
    'dtype': 'auto',              # float32, bfloat16, float16; auto chooses what suits the device
    'mesh': {'data': -1},         # devices along each axis; -1 is all that remain
  }, given)


def reports(**given) -> ConfigDict:
  """What a run reports; these fields are at the top level of the config."""
  return group({
    'log_every': 50,              # steps
    'knn_every': 10,              # epochs between online kNN evaluations; 0 is never
    'profile': (),                # the steps between which a jax.profiler trace is made; () for none
    'figures': True,              # draw curves, neighbours and a map of the features at the end
  }, given)


def log(**given) -> ConfigDict:
  """Services that also get what a run reports."""
  return group({
    'wandb': '',                  # project of Weights & Biases, or TEAM/PROJECT; '' for none
  }, given)


def checkpoint(**given) -> ConfigDict:
  """When a run saves."""
  return group({
    'every_epochs': 1.0,          # epochs between checkpoints
    'keep': 3,                    # checkpoints to keep; at least two, since the newest may turn out bad
    'verify': True,               # whether a resume compares the checkpoint with the hashes of what was saved
  }, given)


def probe(**given) -> ConfigDict:
  """Measures without labels during training."""
  return group({
    'images': 2000,               # maximum training images; fewer in a short run; 0 turns the probe off
    'times': 12,                  # probes per run, evenly spaced, the first after 2% of it
  }, given)


def evaluated(**given) -> ConfigDict:
  """What to measure after training, `config.eval`."""
  return group({
    'knn': True,                  # evaluate kNN
    'linear': True,               # run the linear protocol
    'baselines': False,           # the same for raw pixels and for a random network
    'baseline_weights': '',       # and for published weights: a file, like --config.encoder
    'resize': 0,                  # the short side before a centre crop of views.size; 0 is 256/224 of it
    'batch_size': 512,            # images encoded at a time
    'k': (20, 200),               # the first is the headline
    'features': 'encoder',        # what kNN compares: features of the 'encoder' or the 'head'
  }, given)


def linear(**given) -> ConfigDict:
  """The linear protocol."""
  return group({
    'learning_rates': (75.0,),    # several form a sweep
    'epochs': 100,                # passes over the training images
    'batch_size': 512,            # images per step
    'momentum': 0.9,              # of SGD, without weight decay
    'schedule': 'cosine',         # or 'steps'
    'milestones': (),             # shares of the training at which 'steps' divides the rate by 10
    'normalise': 'none',          # or 'l2', 'standardise' (for features that are large or small)
    'crop': (0.08, 1.0),          # area of the training crop as a share of the image
  }, given)


def finetune(**given) -> ConfigDict:
  """Fine-tuning for classification."""
  return group({
    'learning_rate': 0.01,        # of the encoder
    'head_learning_rate': 0.1,    # of the new linear layer
    'epochs': 100,                # passes over the images that are used
    'batch_size': 256,            # images per step
    'optimizer': 'sgd',           # or 'adamw', for transformers and ConvNeXts
    'momentum': 0.9,              # of SGD; β₁ of adamw
    'weight_decay': 1e-4,         # of all layers
    'layer_decay': 1.0,           # factor on the encoder's rate for each block further from the output
    'schedule': 'cosine',         # or 'steps'
    'milestones': (),             # shares of the training at which 'steps' divides the rates by 10
    'crop': (0.08, 1.0),          # area of the training crop as a share of the image
    'labels': 1.0,                # share of the labels to use; 1 is all images
  }, given)


# ---- Whole configs ----------------------------------------------------------------------------


def pretraining(method: str) -> ConfigDict:
  """Settings of every pretraining; each config then states its paper's values and adds its own fields."""
  config = ConfigDict({
    **run(method=method), **length(), **hardware(),
    'kernels': True,              # Pallas kernels for the softmax where they serve; False is XLA everywhere
    **reports()})
  config.data, config.sampler, config.views = data(), sampler(), views()
  config.encoder, config.head, config.optimizer = encoder(), head(), optimizer()
  config.log, config.checkpoint, config.probe = log(), checkpoint(), probe()
  config.eval, config.linear = evaluated(), linear()
  return config


def evaluation(task: str, result: str) -> ConfigDict:
  """Settings of every evaluation of an encoder."""
  return ConfigDict({
    'task': task,
    'result': result,             # name of the JSON file of results
    'encoder': '',                # a run folder, a weights file, or random
    'run': '',                    # where the result goes; '' is the encoder's run, or runs/evaluated_NAME
    'seed': 0,                    # for everything random
    **hardware(),
    'data': data(name='', train='', test=''),   # '' takes the value of the encoder's run
    'network': network(),         # of a random encoder
  })


def classification(task: str, result: str, data_set: str) -> ConfigDict:
  """An evaluation on image classes, on a data set or, for 'run', on the data of the encoder's own run."""
  config = evaluation(task, result)
  # A field that is None takes the value of the encoder's run.
  config.views = group({
    'size': placeholder(int),     # pixels per side
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
  """Raises a `ValueError` if configs/NAME.py has no such preset."""
  if preset not in presets:
    raise ValueError(f"There is no preset '{preset}' of configs/{name}.py; available: {', '.join(presets)}.")


def with_preset(config: ConfigDict, name: str, presets: dict, preset: str) -> ConfigDict:
  """Applies a preset to a pretraining config: first what its data set needs, then the preset's own changes.

  Args:
    config: the config, with all its fields.
    name: name of the config file.
    presets: the changes of each preset, on top of those of `DATA_SETS`.
    preset: the preset to apply; `folder` leaves the fields of configs/auto.py open.

  Returns:
    The config, which accepts no new fields from now on.

  Raises:
    ValueError: if there is no such preset.
  """
  check(name, presets, preset)
  config.run = f'runs/{name}' if preset == 'imagenet' else f'runs/{name}_{preset}'
  DATA_SETS.get(preset, imagenet)(config)
  presets[preset](config)
  if preset == 'folder':
    auto.leave_open(config)
  return config.lock()


def imagenet(config: ConfigDict) -> None:
  """ImageNet from TFDS, with the defaults of the groups."""


def imagenet100(config: ConfigDict) -> None:
  """A hundred classes of ImageNet in the usual folders: train/CLASS/*.JPEG and val/CLASS/*.JPEG."""
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
  """Patches of the photographs in scikit-image and scikit-learn: no download, minutes on a CPU.

  The colour jitter is mild because colour tells the photographs apart.
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
  """Your own images, with settings that fit their number and kind: `configs/auto.py` lists the open fields.

  A flat or nested folder, one folder per class, or train/ and val/ with such folders.
  """
  config.data.name = 'folder'
  config.eval.baselines = True


DATA_SETS = {'imagenet': imagenet, 'imagenet100': imagenet100, 'cifar10': cifar10, 'photos': photos,
             'folder': folder}


def unchanged(config: ConfigDict) -> None:
  """A preset with no changes besides its data set's."""


PLAIN = dict.fromkeys(DATA_SETS, unchanged)
