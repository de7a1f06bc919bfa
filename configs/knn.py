"""kNN accuracy of a frozen encoder: cosine similarity, votes exp(s/0.07).

  python -m conic_jax.main --config=configs/knn.py --config.encoder=runs/photos
  python -m conic_jax.main --config=configs/knn.py:photos --config.encoder=random

--config.eval.features=head compares the features of the run's projection head instead of the encoder's, as
InstDisc's code does. A field that is None, or an empty name of the data, is taken from the encoder's own run.
An encoder that is random, or a file of weights, has no run: the preset (imagenet, cifar10, photos, folder)
gives it data, and a random one its network. The result is printed and written to knn.json (knn_PRESET.json)
in config.run, which is the encoder's run, or runs/evaluated_NAME.
"""
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

PRESETS = ('run', 'imagenet', 'cifar10', 'photos', 'folder')


def get_config(preset: str = 'run') -> ConfigDict:
  """As the run's own config says: of configs/conic.py InstDisc's vote with k of 20 and 200."""
  if preset not in PRESETS:
    raise ValueError(f"There is no preset '{preset}' of configs/knn.py; there is: {', '.join(PRESETS)}.")
  config = ConfigDict()
  config.task = 'knn'
  config.result = 'knn' if preset == 'run' else f'knn_{preset}'  # name of the JSON file of figures
  config.encoder = ''             # a run folder, a file of weights, or random
  config.run = ''                 # where the result goes; '' is the encoder's run, or runs/evaluated_NAME
  config.seed = 0
  config.dtype = 'auto'
  config.mesh = ConfigDict({'data': -1})

  config.data = ConfigDict({'name': '', 'dir': '', 'train': '', 'test': '', 'cache': ''})
  config.views = ConfigDict({'size': placeholder(int)})
  config.eval = ConfigDict({'resize': placeholder(int), 'batch_size': placeholder(int),
                            'k': placeholder(tuple), 'features': placeholder(str)})
  config.network = ConfigDict({'name': 'resnet50', 'blocks': (), 'stem': 'imagenet', 'width': 1.0,
                               'zero_gamma': False, 'output_stride': 32})
  data_of(config, preset)
  return config


def data_of(config: ConfigDict, preset: str) -> None:
  """The data set of a preset, with the sizes and the network that suit it."""
  if preset == 'run':
    return
  config.eval.batch_size, config.eval.k, config.eval.features = 512, (20, 200), 'encoder'
  config.views.size, config.eval.resize = 224, 256
  config.data.update(name='imagenet2012', train='train', test='validation')
  if preset == 'folder':
    config.data.update(name='folder', train='train', test='val')
  if preset in ('cifar10', 'photos'):
    config.data.update(name=preset, train='train', test='test')
    config.views.size, config.eval.resize = 32, 32
    config.network.update(name='resnet18', stem='cifar')
  if preset == 'photos':
    config.network.update(stem='imagenet', blocks=(2, 2), width=0.75)
    config.eval.batch_size = 128
