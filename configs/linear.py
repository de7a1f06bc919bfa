"""The linear protocol on a frozen encoder (ConIC, Appendix C.2).

  python -m conic_jax.main --config=configs/linear.py --config.encoder=runs/photos
  python -m conic_jax.main --config=configs/linear.py:photos --config.encoder=random

A field that is None, or an empty name of the data, is taken from the encoder's own run. An encoder that is
random, or a file of weights, has no run: the preset (photos, cifar10, imagenet) gives it data, and a random
one its network. The result is printed and written to linear.json in the encoder's run, or in config.run.
"""
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(preset: str = 'run') -> ConfigDict:
  """As the run's own config says: of configs/conic.py 100 epochs, no weight decay, cosine from 75."""
  config = ConfigDict()
  config.task = 'linear'
  config.encoder = ''             # a run folder, a file of weights, or random
  config.run = ''                 # where the result goes; '' is the encoder's run
  config.seed = 0
  config.dtype = 'auto'
  config.mesh = ConfigDict({'data': -1})
  config.linear = ConfigDict({
    'learning_rates': placeholder(tuple),  # several are a sweep
    'epochs': placeholder(int),
    'batch_size': placeholder(int),
    'normalise': placeholder(str),         # none, l2, standardise (features that are large or small)
  })

  config.data = ConfigDict({'name': '', 'dir': '', 'train': '', 'test': '', 'cache': ''})
  config.views = ConfigDict({'size': placeholder(int)})
  config.eval = ConfigDict({'resize': placeholder(int), 'batch_size': placeholder(int)})
  config.network = ConfigDict({'name': 'resnet50', 'blocks': (), 'stem': 'imagenet', 'width': 1.0,
                               'zero_gamma': False, 'output_stride': 32})

  presets = ('run', 'imagenet', 'cifar10', 'photos')
  if preset not in presets:
    raise ValueError(f"There is no preset '{preset}' of configs/linear.py; there is: {', '.join(presets)}.")
  if preset != 'run':
    config.linear.update(learning_rates=(75.0,), epochs=100, batch_size=512, normalise='none')
    config.eval.batch_size = 512
  if preset == 'imagenet':
    config.data.update(name='imagenet2012', train='train', test='validation')
    config.views.size, config.eval.resize = 224, 256
  elif preset in ('cifar10', 'photos'):
    config.data.update(name=preset, train='train', test='test')
    config.views.size, config.eval.resize = 32, 32
    config.network.update(name='resnet18', stem='cifar')
    config.linear.learning_rates = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
  if preset == 'photos':
    config.network.update(stem='imagenet', blocks=(2, 2), width=0.75)
    config.eval.batch_size = config.linear.batch_size = 128
    config.linear.epochs = 10
  return config
