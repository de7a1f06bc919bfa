"""ConvNeXts in the files of timm, torchvision, Transformers and their authors."""
import collections
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from conic_jax.export import names
from conic_jax.export.layouts import Spelling
from conic_jax.models import ConvNeXt, convnext

# Our layers of a block, by their names in timm and in Transformers.
_TIMM = {'depthwise': 'conv_dw', 'norm': 'norm', 'hidden': 'mlp.fc1', 'output': 'mlp.fc2'}
_TRANSFORMERS = {'conv_dw': 'dwconv', 'norm': 'layernorm', 'mlp.fc1': 'pwconv1', 'mlp.fc2': 'pwconv2'}

SPELLINGS = (
  Spelling('stages.0.blocks.0.conv_dw.weight', ()),
  Spelling('stages.0.0.dwconv.weight', (                       # the authors
    (r'downsample_layers\.0\.(\d)\.(.*)', r'stem.\1.\2'),
    (r'downsample_layers\.(\d)\.(\d)\.(.*)', r'stages.\1.downsample.\2.\3'),
    (r'norm\.(.*)', r'head.norm.\1'),
    (r'stages\.(\d)\.(\d+)\.gamma', r'stages.\1.blocks.\2.gamma'),
    (r'stages\.(\d)\.(\d+)\.dwconv\.(.*)', r'stages.\1.blocks.\2.conv_dw.\3'),
    (r'stages\.(\d)\.(\d+)\.norm\.(.*)', r'stages.\1.blocks.\2.norm.\3'),
    (r'stages\.(\d)\.(\d+)\.pwconv(\d)\.(.*)', r'stages.\1.blocks.\2.mlp.fc\3.\4'))),
  Spelling('features.1.0.block.0.weight', (                    # torchvision: stages are its odd numbers
    (r'features\.0\.(\d)\.(.*)', r'stem.\1.\2'),
    *((rf'features\.{2 * stage}\.(\d)\.(.*)', rf'stages.{stage}.downsample.\1.\2') for stage in range(1, 4)),
    *((rf'features\.{2 * stage + 1}\.(\d+)\.{theirs}', rf'stages.{stage}.blocks.\1.{ours}')
      for stage in range(4)
      for theirs, ours in ((r'layer_scale', 'gamma'), (r'block\.0\.(.*)', r'conv_dw.\2'),
                           (r'block\.2\.(.*)', r'norm.\2'), (r'block\.3\.(.*)', r'mlp.fc1.\2'),
                           (r'block\.5\.(.*)', r'mlp.fc2.\2'))),
    (r'classifier\.0\.(.*)', r'head.norm.\1'))),
  Spelling('encoder.stages.0.layers.0.dwconv.weight', (        # Transformers
    (r'embeddings\.patch_embeddings\.(.*)', r'stem.0.\1'), (r'embeddings\.layernorm\.(.*)', r'stem.1.\1'),
    (r'layernorm\.(.*)', r'head.norm.\1'),
    (r'encoder\.stages\.(\d)\.downsampling_layer\.(\d)\.(.*)', r'stages.\1.downsample.\2.\3'),
    (r'encoder\.stages\.(\d)\.layers\.(\d+)\.layer_scale_parameter', r'stages.\1.blocks.\2.gamma'),
    *((rf'encoder\.stages\.(\d)\.layers\.(\d+)\.{theirs}\.(.*)', rf'stages.\1.blocks.\2.{ours}.\3')
      for ours, theirs in _TRANSFORMERS.items()))),
)


def name(network: ConvNeXt) -> str:
  """The common name of a network, such as 'convnext_tiny'; '' if it has none."""
  layout = (network.blocks, network.channels)
  return next((name for name, known in convnext.ARCHITECTURES.items() if known == layout), '')


def described(network: ConvNeXt) -> str:
  """The network in words."""
  return (f'blocks {", ".join(map(str, network.blocks))}, from {network.channels} channels, patches of '
          f'{network.patch} pixels, output stride {network.output_stride}')


def timm_call(network: ConvNeXt, side: int) -> str:
  """The call of timm that makes the network, for images of any size."""
  del side
  base = name(network)
  dims = tuple(network.channels * 2**stage for stage in range(len(network.blocks)))
  own = '' if base else f', depths={network.blocks}, dims={dims}'
  return f"timm.create_model('{base or 'convnext_tiny'}', num_classes=0, patch_size={network.patch}{own})"


def to_timm(network: ConvNeXt, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The arrays of a network by timm's names, float32."""
  flat = traverse_util.flatten_dict(dict(variables['params']), sep='/')
  return {_name(path): names.to_torch(np.asarray(leaf, np.float32)) for path, leaf in flat.items()}


def from_timm(network: ConvNeXt, arrays: Mapping[str, np.ndarray], paths: Iterable[str]) -> dict[str, Any]:
  """The variables at our `paths` from arrays by timm's names: the inverse of `to_timm`."""
  flat = {path: names.from_torch(arrays[_name(path)]) for path in paths}
  return {'params': traverse_util.unflatten_dict(flat, sep='/'), 'batch_stats': {}}


def describe(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Settings of `models.build_encoder` for the arrays of a file by timm's names.

  Raises:
    ValueError: if they are of no network that can be described, as a phrase.
  """
  stem = arrays.get('stem.0.weight')
  if stem is None or stem.ndim != 4:
    raise ValueError('it lacks stem.0.weight')
  matches = (re.match(r'stages\.(\d+)\.blocks\.(\d+)\.', name) for name in arrays)
  counts = collections.Counter(int(stage) for stage, _ in {match.groups() for match in matches if match})
  blocks = tuple(counts[stage] for stage in sorted(counts))
  channels, _, patch, _ = stem.shape
  base = next((base for base, known in convnext.ARCHITECTURES.items() if known == (blocks, channels)), '')
  return {'name': base or 'convnext_tiny', 'blocks': () if base else blocks, 'stem': 'imagenet',
          'width': channels / 96, 'zero_gamma': False, 'output_stride': 32, 'patch': patch,
          'positions': 'sincos', 'frozen_patches': False}


def flattened(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays with the scales of blocks as vectors; torchvision has them as maps of one pixel."""
  return {name: array.reshape(-1) if name.endswith('.gamma') else array for name, array in arrays.items()}


def to_transformers(network: ConvNeXt, variables: Mapping[str, Any]
                    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """config.json and the arrays of Transformers' ConvNextModel."""
  config = {
    'architectures': ['ConvNextModel'], 'model_type': 'convnext', 'num_channels': 3, 'hidden_act': 'gelu',
    'patch_size': network.patch, 'num_stages': len(network.blocks), 'depths': list(network.blocks),
    'hidden_sizes': [network.channels * 2**stage for stage in range(len(network.blocks))],
    'layer_norm_eps': 1e-6, 'layer_scale_init_value': convnext.LAYER_SCALE}
  return config, {_transformers_name(name): array for name, array in to_timm(network, variables).items()}


def _name(path: str) -> str:
  """timm's name for our array, such as 'stage2/block0/depthwise/kernel'."""
  *place, last = path.split('/')
  outside = {'stem': 'stem.0', 'stem_norm': 'stem.1', 'norm': 'head.norm'}
  if place[0] in outside:
    return f'{outside[place[0]]}.{names.FIELDS[last]}'
  stage = f'stages.{int(place[0].removeprefix("stage")) - 1}'
  if place[1] in ('shortcut', 'shortcut_norm'):
    return f'{stage}.downsample.{int(place[1] == "shortcut")}.{names.FIELDS[last]}'
  block = f'{stage}.blocks.{place[1].removeprefix("block")}'
  return f'{block}.{_TIMM[place[2]]}.{names.FIELDS[last]}' if len(place) > 2 else f'{block}.gamma'


def _transformers_name(name: str) -> str:
  """Transformers' name for an array by timm's."""
  if match := re.fullmatch(r'stages\.(\d)\.blocks\.(\d+)\.(.*)', name):
    stage, block, rest = match.groups()
    layer, _, field = rest.rpartition('.')
    last = f'{_TRANSFORMERS[layer]}.{field}' if layer else 'layer_scale_parameter'
    return f'encoder.stages.{stage}.layers.{block}.{last}'
  for ours, theirs in (('stem.0', 'embeddings.patch_embeddings'), ('stem.1', 'embeddings.layernorm'),
                       ('head.norm', 'layernorm')):
    if name.startswith(ours):
      return theirs + name.removeprefix(ours)
  return 'encoder.' + name.replace('.downsample.', '.downsampling_layer.')
