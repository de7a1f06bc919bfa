"""What several tests use."""
import re

import numpy as np
from ml_collections import ConfigDict

from conic_jax.command_line import load


def flags_of(config):
  """The command-line flags that make configs/conic.py:folder into this config."""
  base = dict(_leaves(load('configs/conic.py:folder')))
  return ['--config=configs/conic.py:folder',
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
