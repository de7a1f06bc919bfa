"""The encoder that a config describes."""
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from conic_jax.errors import UserError
from conic_jax.extensions import own_part
from conic_jax.models import convnext, resnet, vit
from conic_jax.models.convnext import ConvNeXt
from conic_jax.models.resnet import ResNet
from conic_jax.models.vit import VisionTransformer

# What `build_encoder` reads, and what is meant where a field is absent, as in older configs.
ENCODER_FIELDS = {'name': 'resnet18', 'blocks': (), 'stem': 'imagenet', 'width': 1.0, 'zero_gamma': False,
                  'output_stride': 32, 'patch': 0, 'positions': 'sincos', 'frozen_patches': False,
                  'remat': False}
NAMES = (*resnet.ARCHITECTURES, *vit.CHANNELS, *convnext.ARCHITECTURES)
STRIDES = (8, 16, 32)
# What `build_encoder` builds: one of the networks here, or a module of the user's own.
EncoderModule = nn.Module


def build_encoder(config: Any, dtype: Any, groups: int = 8) -> Any:
  """Builds the encoder that `config.encoder` describes.

  Args:
    config: has `name` (one of `NAMES`, or a module with `build(config, dtype, groups)`), and of the other
      `ENCODER_FIELDS` those that differ from what is meant there.
    dtype: compute dtype; parameters and statistics are float32.
    groups: batch-norm groups in mode 'grouped'.

  Raises:
    UserError: if the name, the stem, the positions or the output stride is unknown.
  """
  if build := own_part(config.name, 'build'):
    return build(config, dtype, groups)
  read = {field: getattr(config, field, usual) for field, usual in ENCODER_FIELDS.items()}
  for field, known in (('name', NAMES), ('stem', resnet.STEMS), ('output_stride', STRIDES),
                       ('positions', vit.POSITIONS)):
    if read[field] not in known:
      raise UserError(f'config.encoder.{field} {read[field]!r} is unknown: set it to one of '
                      f'{", ".join(map(str, known))}.')
  name, blocks, stride = read['name'], tuple(read['blocks']), read['output_stride']
  if name in vit.CHANNELS:
    return VisionTransformer(
      blocks or vit.BLOCKS, vit.scaled(vit.CHANNELS[name], read['width']),
      read['patch'] or vit.PATCHES[read['stem']], read['positions'], read['frozen_patches'], stride, dtype,
      read['remat'])
  if name in convnext.ARCHITECTURES:
    usual, channels = convnext.ARCHITECTURES[name]
    return ConvNeXt(blocks or usual, int(channels * read['width']),
                    read['patch'] or convnext.PATCHES[read['stem']], stride, dtype, read['remat'])
  usual, bottleneck = resnet.ARCHITECTURES[name]
  return ResNet(blocks or usual, bottleneck, read['width'], read['stem'], read['zero_gamma'], stride, groups,
                dtype, read['remat'])


def stage_names(maps: Mapping[str, Any]) -> list[str]:
  """Names of the stages among what an encoder returns with `stages`, the first one first."""
  return sorted((name for name in maps if name.startswith('stage')), key=lambda name: int(name[5:]))


def distances(params: Mapping[str, Any]) -> Any:
  """How far from the output each parameter of an encoder lies, in blocks: of L, L + 1 before the first one.

  Args:
    params: of an encoder with blocks 'stage1/block0', ….

  Returns:
    The same tree, with a whole number for each array: 0 after the last block, 1 in it, and so on; what
    stands between two blocks counts with the later one.

  Raises:
    UserError: if the encoder has no such blocks.
  """
  counts = {stage: sum(part.startswith('block') for part in params[stage]) for stage in stage_names(params)}
  if not sum(counts.values()):
    raise UserError('The encoder has no blocks, stage1/block0 and so on, for rates by depth: set '
                    'config.finetune.layer_decay to 1.')
  left, total = {}, sum(counts.values())
  for stage, count in counts.items():
    left[stage], total = total, total - count

  def distance(path, leaf):
    first, *rest = (key.key for key in path)
    if first in left:
      return left[first] - (int(rest[0].removeprefix('block')) if rest[0].startswith('block') else 0)
    return sum(counts.values()) + 1 if first.startswith('stem') or first == 'token' else 0

  return jax.tree_util.tree_map_with_path(distance, dict(params))
