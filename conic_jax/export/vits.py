"""Vision transformers in the files of timm, torchvision and Transformers."""
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from conic_jax.export import names
from conic_jax.export.layouts import Spelling
from conic_jax.models import VisionTransformer, vit

# Our layers of a block, by their names in timm and in Transformers, which splits `qkv` in three.
_TIMM = {'norm1': 'norm1', 'qkv': 'attn.qkv', 'projection': 'attn.proj', 'norm2': 'norm2',
         'hidden': 'mlp.fc1', 'output': 'mlp.fc2'}
_TRANSFORMERS = {'norm1': 'layernorm_before', 'attn.proj': 'attention.output.dense',
                 'norm2': 'layernorm_after', 'mlp.fc1': 'intermediate.dense', 'mlp.fc2': 'output.dense'}
_PARTS = ('query', 'key', 'value')
_QKV = re.compile(r'blocks\.(\d+)\.attn\.qkv\.(\w+)')

SPELLINGS = (
  Spelling('blocks.0.norm1.weight', ()),
  Spelling('encoder.layers.encoder_layer_0.ln_1.weight', (     # torchvision
    ('class_token', 'cls_token'), (r'encoder\.pos_embedding', 'pos_embed'),
    (r'conv_proj\.(.*)', r'patch_embed.proj.\1'),
    (r'encoder\.ln\.(.*)', r'norm.\1'),
    (r'encoder\.layers\.encoder_layer_(\d+)\.ln_(\d)\.(.*)', r'blocks.\1.norm\2.\3'),
    (r'encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(.*)', r'blocks.\1.attn.qkv.\2'),
    (r'encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(.*)', r'blocks.\1.attn.proj.\2'),
    (r'encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(.*)', r'blocks.\1.mlp.fc1.\2'),
    (r'encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(.*)', r'blocks.\1.mlp.fc2.\2'))),
  Spelling('encoder.layer.0.layernorm_before.weight', (        # Transformers
    (r'embeddings\.cls_token', 'cls_token'), (r'embeddings\.position_embeddings', 'pos_embed'),
    (r'embeddings\.patch_embeddings\.projection\.(.*)', r'patch_embed.proj.\1'),
    (r'layernorm\.(.*)', r'norm.\1'),
    (r'encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(.*)', r'blocks.\1.attn.\2.\3'),
    *((rf'encoder\.layer\.(\d+)\.{re.escape(theirs)}\.(.*)', rf'blocks.\1.{ours}.\2')
      for ours, theirs in _TRANSFORMERS.items()))),
)


def name(network: VisionTransformer) -> str:
  """The common name of a network, such as 'vit_small'; '' if it has none."""
  if sum(network.blocks) != sum(vit.BLOCKS):
    return ''
  return next((name for name, channels in vit.CHANNELS.items() if channels == network.channels), '')


def described(network: VisionTransformer) -> str:
  """The network in words."""
  return (f'{sum(network.blocks)} blocks of {network.channels} channels, patches of {network.patch} pixels, '
          f'{network.positions} positions')


def timm_call(network: VisionTransformer, side: int) -> str:
  """The call of timm that makes the network, for images of `side` pixels."""
  base = name(network)
  own = '' if base else (f', embed_dim={network.channels}, depth={sum(network.blocks)}, '
                         f'num_heads={vit.heads(network.channels)}')
  return (f"timm.create_model('{base or 'vit_tiny'}_patch16_224', num_classes=0, patch_size={network.patch}, "
          f'img_size={side}{own})')


def to_timm(network: VisionTransformer, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The arrays of a network with learned positions by timm's names, float32."""
  flat = {path.partition('/')[2]: np.asarray(leaf, np.float32)
          for path, leaf in traverse_util.flatten_dict(dict(variables), sep='/').items()}
  token, positions = flat.pop('token')[None], flat.pop('stem/positions').reshape(-1, network.channels)
  arrays = {'cls_token': token[None],
            'pos_embed': np.concatenate([np.zeros_like(token), positions])[None]}
  return {**arrays, **{_name(network, path): names.to_torch(leaf) for path, leaf in flat.items()}}


def from_timm(network: VisionTransformer, arrays: Mapping[str, np.ndarray], paths: Iterable[str]
              ) -> dict[str, Any]:
  """The variables at our `paths` from arrays by timm's names: the inverse of `to_timm`."""
  positions, side = arrays['pos_embed'][0], math.isqrt(len(arrays['pos_embed'][0]) - 1)
  flat = {'token': arrays['cls_token'][0, 0] + positions[0],
          'stem/positions': positions[1:].reshape(side, side, -1)}
  flat |= {path: names.from_torch(arrays[_name(network, path)]) for path in paths if path not in flat}
  return {'params': traverse_util.unflatten_dict(flat, sep='/'), 'batch_stats': {}}


def describe(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Settings of `models.build_encoder` for the arrays of a file by timm's names.

  Raises:
    ValueError: if they are of no network that can be described, as a phrase.
  """
  if 'patch_embed.proj.weight' not in arrays or 'pos_embed' not in arrays or 'cls_token' not in arrays:
    raise ValueError('it lacks patch_embed.proj.weight, pos_embed or cls_token')
  channels, _, patch, _ = arrays['patch_embed.proj.weight'].shape
  if channels > 1024 or channels % (vit.HEAD_CHANNELS if channels > vit.HEAD_CHANNELS else 4):
    raise ValueError(f'its tokens have {channels} channels, and the file does not tell how many heads')
  patches = arrays['pos_embed'].shape[1] - 1
  if math.isqrt(patches)**2 != patches:
    raise ValueError(f'its positions are {patches} and a token, which is no square')
  depth = len({name.split('.')[1] for name in arrays if name.startswith('blocks.')})
  base = next((base for base, known in vit.CHANNELS.items() if known == channels), 'vit_tiny')
  blocks = tuple(len(part) for part in np.array_split(np.arange(depth), 4) if len(part))
  return {'name': base, 'blocks': () if blocks == vit.BLOCKS else blocks, 'stem': 'imagenet',
          'width': channels / vit.CHANNELS[base], 'zero_gamma': False, 'output_stride': 32, 'patch': patch,
          'positions': 'learned', 'frozen_patches': False}


def side(arrays: Mapping[str, np.ndarray]) -> int:
  """Pixels per side of the images that the positions of a file are for."""
  return math.isqrt(arrays['pos_embed'].shape[1] - 1) * arrays['patch_embed.proj.weight'].shape[-1]


def joined(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays with query, key and value of a block in one, as timm has them."""
  parts = {name for name in arrays if re.fullmatch(r'blocks\.\d+\.attn\.(query|key|value)\.\w+', name)}
  whole = {name: array for name, array in arrays.items() if name not in parts}
  for name in parts:
    if '.query.' in name:
      found = [name.replace('query', part) for part in _PARTS]
      if parts.issuperset(found):
        whole[name.replace('query', 'qkv')] = np.concatenate([arrays[part] for part in found])
  return whole


def to_transformers(network: VisionTransformer, variables: Mapping[str, Any]
                    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """config.json and the arrays of Transformers' ViTModel; its pooler hands on the class token."""
  channels = network.channels
  config = {
    'architectures': ['ViTModel'], 'model_type': 'vit', 'num_channels': 3, 'hidden_act': 'gelu',
    'hidden_size': channels, 'num_hidden_layers': sum(network.blocks),
    'num_attention_heads': vit.heads(network.channels), 'intermediate_size': vit.HIDDEN * channels,
    'image_size': len(variables['params']['stem']['positions']) * network.patch,
    'patch_size': network.patch, 'layer_norm_eps': 1e-6, 'qkv_bias': True,
    'pooler_act': 'linear'}
  arrays = {'pooler.dense.weight': np.eye(channels, dtype=np.float32),
            'pooler.dense.bias': np.zeros(channels, np.float32)}
  for name, array in to_timm(network, variables).items():
    if match := _QKV.fullmatch(name):
      block, field = match.groups()
      for part, its in zip(_PARTS, np.split(array, 3), strict=True):
        arrays[f'encoder.layer.{block}.attention.attention.{part}.{field}'] = np.ascontiguousarray(its)
    else:
      arrays[_transformers_name(name)] = array
  return config, arrays


def at_size(network: VisionTransformer, variables: Mapping[str, Any], side: int
            ) -> tuple[VisionTransformer, dict[str, Any]]:
  """The same function of images of `side` pixels, with learned positions for that size alone."""
  params: dict[str, Any] = traverse_util.flatten_dict(dict(variables['params']), sep='/')
  frozen = traverse_util.flatten_dict(dict(variables.get('batch_stats', {})), sep='/')
  length = side // network.patch
  positions = vit.sincos_positions(length, length, network.channels) if network.positions == 'sincos' \
    else vit.resized_positions(params['stem/positions'], length, length)
  params = {**params, **frozen, 'stem/positions': np.asarray(positions)}
  return (network.clone(positions='learned', frozen_patches=False),
          {'params': traverse_util.unflatten_dict(params, sep='/'), 'batch_stats': {}})


def _name(network: VisionTransformer, path: str) -> str:
  """timm's name for our array, such as 'stage2/block0/qkv/kernel'."""
  *place, last = path.split('/')
  field = names.FIELDS[last]
  if place == ['stem']:
    return f'patch_embed.proj.{field}'
  if place == ['norm']:
    return f'norm.{field}'
  stage, block, layer = place
  number = sum(network.blocks[:int(stage.removeprefix('stage')) - 1]) + int(block.removeprefix('block'))
  return f'blocks.{number}.{_TIMM[layer]}.{field}'


def _transformers_name(name: str) -> str:
  """Transformers' name for an array by timm's."""
  whole = {'cls_token': 'embeddings.cls_token', 'pos_embed': 'embeddings.position_embeddings'}
  if name in whole:
    return whole[name]
  if match := re.fullmatch(r'blocks\.(\d+)\.(.*)\.(\w+)', name):
    block, layer, field = match.groups()
    return f'encoder.layer.{block}.{_TRANSFORMERS[layer]}.{field}'
  return (name.replace('patch_embed.proj', 'embeddings.patch_embeddings.projection')
          if name.startswith('patch_embed') else f'layer{name}')
