"""What several tests use."""
import re

import numpy as np
from ml_collections import ConfigDict

from conic_jax.command_line import load


def as_method(config, name, **changes):
  """Makes a config of ConIC one of another method, in its own settings but for these changes."""
  own = load(f'configs/{name}.py:folder')
  with config.unlocked():
    for field in set(own) - set(config):
      config[field] = own[field]
    for field in set(config) - set(own):
      del config[field]
    for field in set(own.classifier) - set(config.classifier):
      config.classifier[field] = own.classifier[field]
  config.method = name
  config.update_from_flattened_dict(changes)
  return config


def flags_of(config):
  """The command-line flags that make the preset folder of its method into this config."""
  file = f'configs/{config.method}.py:folder'
  base = dict(_leaves(load(file)))
  return [f'--config={file}',
          *(f'--config.{path}={value}' for path, value in _leaves(config) if base[path] != value)]


def _leaves(node, prefix=''):
  for name, value in node.items():
    if isinstance(value, ConfigDict):
      yield from _leaves(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value


def collective_sizes(text):
  """Elements of the result of every collective of a compiled program."""
  kinds = r'(?:all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\('
  sizes = []
  for line in text.splitlines():
    if match := re.search(rf'= (.*?) {kinds}', line):
      shapes = re.findall(r'\w+\[([\d,]*)\]', match.group(1))
      sizes += [int(np.prod([int(n) for n in shape.split(',') if n])) for shape in shapes]
  return sizes
