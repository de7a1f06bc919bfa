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
from conic_jax.export.families import FAMILIES, Family
from conic_jax.run.finite import check_finite

_STEMS = {7: 'imagenet', 3: 'cifar'}


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads an encoder from a file of weights, wherever `layouts` finds it.

  It is a ResNet, a vision transformer or a ConvNeXt. The file of a ResNet does not record strides: a
  bottleneck's stride is assumed to be on its 3×3, as in torchvision, and a 3×3 stem to have stride 1 and no
  pool, as is usual for small images.

  Args:
    path: a .safetensors file, or one written by torch.save.

  Returns:
    The settings for `models.build_encoder`, and the variables {'params', 'batch_stats'}, float32.

  Raises:
    UserError: if the file cannot be read, holds pickled objects, is no such encoder, or has weights that
      are NaN or infinite.
  """
  if not path.is_file():
    raise UserError(f"There is no file '{path}'.")
  arrays = weights_file.read_arrays(path)
  for family in FAMILIES:
    if found := layouts.spelled(arrays, family.spellings, path, family.kind):
      config, variables = _of_family(family, family.tidied(found), path)
      break
  else:
    found = layouts.resnet_of(arrays, path)
    config = _describe(found, path)
    variables = _variables(config, found, path)
  check_finite(variables, str(path), 'give another file.')
  return config, variables


def _of_family(family: Family, arrays: Mapping[str, np.ndarray], path: Path
               ) -> tuple[dict[str, Any], dict[str, Any]]:
  """Settings and variables of an encoder from its arrays by timm's names."""
  try:
    config = family.describe(arrays)
  except ValueError as error:
    raise UserError(f'{path} is none of the {family.kind} that are known here: {error}.') from error
  network = models.build_encoder(types.SimpleNamespace(**config), jnp.float32)
  side = family.side(arrays)
  shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
  wanted = family.to_timm(network, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
  _check({name: array.shape for name, array in wanted.items()}, arrays, path,
         f'none of the {family.kind} that are known here', config['name'])
  arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
  return config, family.from_timm(network, arrays, traverse_util.flatten_dict(shapes['params'], sep='/'))


def _check(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, np.ndarray], path: Path, what: str,
           name: str) -> None:
  """Checks that exactly the wanted arrays are there, in their shapes."""
  wrong = [array for array in sorted(wanted.keys() | found.keys())
           if array not in wanted or array not in found or found[array].shape != wanted[array]]
  if wrong:
    raise UserError(f"{path} is {what}: of {name}'s arrays {len(wrong)} are missing, of another shape, or "
                    f'too many, the first of them {wrong[0]}.')


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
  _check({name: places[place].shape for name, place in wanted.items()}, found, path,
         'no ResNet that is known here', config['name'])
  return traverse_util.unflatten_dict({place: found[name] for name, place in wanted.items()}, sep='/')
