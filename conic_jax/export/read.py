"""Import of encoders from other tools' files, without executing pickled code."""
import collections
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from conic_jax import models
from conic_jax.errors import UserError
from conic_jax.export import layouts, names, weights_file
from conic_jax.run.finite import check_finite

_STEMS = {7: 'imagenet', 3: 'cifar'}


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a ResNet from a file of weights, wherever `layouts.resnet_of` finds it.

  The file does not record strides: a bottleneck's stride is assumed to be on its 3×3, as in torchvision, and
  a 3×3 stem to have stride 1 and no pool, as is usual for small images.

  Args:
    path: a .safetensors file, or one written by torch.save.

  Returns:
    The settings for `models.build_encoder`, and the variables {'params', 'batch_stats'}, float32.

  Raises:
    UserError: if the file cannot be read, holds pickled objects, is not such a ResNet, or has weights that
      are NaN or infinite.
  """
  if not path.is_file():
    raise UserError(f"There is no file '{path}'.")
  arrays = layouts.resnet_of(weights_file.read_arrays(path), path)
  config = _describe(arrays, path)
  variables = _variables(config, arrays, path)
  check_finite(variables, str(path), 'give another file.')
  return config, variables


def _describe(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, Any]:
  """Infers the encoder's settings from names and shapes."""
  stem = arrays['conv1.weight']
  if stem.ndim != 4 or stem.shape[-1] not in _STEMS:
    raise UserError(f'{path} has a stem that is not of 7×7 or 3×3: conv1.weight is {stem.shape}.')
  matches = (re.match(r'layer(\d+)\.(\d+)\.', name) for name in arrays)
  places = {match.groups() for match in matches if match}
  counts = collections.Counter(int(stage) for stage, _ in places)
  blocks = tuple(counts[stage] for stage in sorted(counts))
  bottleneck = 'layer1.0.conv3.weight' in arrays
  name = names.architecture(blocks, bottleneck)
  return {'name': name or ('resnet50' if bottleneck else 'resnet18'), 'blocks': () if name else blocks,
          'stem': _STEMS[stem.shape[-1]], 'width': stem.shape[0] / 64, 'zero_gamma': False,
          'output_stride': 32}


def _variables(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, Any]:
  """Puts the arrays into the network's variables; exactly the expected ones must be present."""
  network = models.build_encoder(types.SimpleNamespace(**config), jnp.float32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  places = traverse_util.flatten_dict(shapes, sep='/')
  wanted = {names.array_name(place, names.torchvision): place for place in places}
  found = {name: names.from_torch(np.asarray(array, np.float32)) for name, array in arrays.items()}
  wrong = [name for name in sorted(wanted.keys() | found.keys())
           if name not in wanted or name not in found or found[name].shape != places[wanted[name]].shape]
  if wrong:
    raise UserError(f"{path} is no ResNet that is known here: of {config['name']}'s arrays {len(wrong)} are "
                    f'missing, of another shape, or too many, the first of them {wrong[0]}.')
  return traverse_util.unflatten_dict({place: found[name] for name, place in wanted.items()}, sep='/')
