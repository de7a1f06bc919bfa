"""Names of ResNet layers in torchvision, Transformers and Detectron2, and PyTorch's array layout."""
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from conic_jax.models.resnet import ARCHITECTURES

_PATH = re.compile(r'(?:stem|stage(?P<stage>\d+)/block(?P<block>\d+))/'
                   r'(?P<kind>conv|norm|shortcut_norm|shortcut)(?P<number>\d*)')
FIELDS = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias',
           'mean': 'running_mean', 'var': 'running_var'}


@dataclasses.dataclass(frozen=True)
class Layer:
  """A convolution, or the batch norm after it.

  Attributes:
    stage: stage number from 1; 0 is the stem.
    block: block number from 0.
    number: number of the convolution in its block, from 1; 0 is the shortcut.
    norm: whether it is the batch norm.
  """
  stage: int
  block: int
  number: int
  norm: bool


def layer(path: str) -> Layer:
  """The layer at a path of our network, such as 'stage2/block0/norm1'."""
  match = _PATH.fullmatch(path)
  if match is None:
    raise ValueError(f'{path} is no layer of a ResNet')
  kind = match['kind']
  number = 0 if kind.startswith('shortcut') else int(match['number'] or 1)
  return Layer(int(match['stage'] or 0), int(match['block'] or 0), number, kind.endswith('norm'))


def torchvision(layer: Layer) -> str:
  """The layer's name in torchvision and timm, such as 'layer2.0.bn1'."""
  if layer.number:
    name = f'{"bn" if layer.norm else "conv"}{layer.number}'
  else:
    name = f'downsample.{int(layer.norm)}'
  return f'layer{layer.stage}.{layer.block}.{name}' if layer.stage else name


def transformers(layer: Layer) -> str:
  """The layer's name in Transformers' ResNetModel, 'encoder.stages.1.layers.0.layer.0.normalization'."""
  part = 'normalization' if layer.norm else 'convolution'
  if not layer.stage:
    return f'embedder.embedder.{part}'
  name = f'layer.{layer.number - 1}' if layer.number else 'shortcut'
  return f'encoder.stages.{layer.stage - 1}.layers.{layer.block}.{name}.{part}'


def detectron2(layer: Layer) -> str:
  """The layer's name in Detectron2's ResNet, such as 'res3.0.conv1.norm'."""
  place = f'res{layer.stage + 1}.{layer.block}' if layer.stage else 'stem'
  name = f'conv{layer.number}' if layer.number else 'shortcut'
  return f'{place}.{name}{".norm" if layer.norm else ""}'


def architecture(blocks: tuple[int, ...], bottleneck: bool) -> str | None:
  """The common name of a network with these blocks, such as 'resnet50'; None if it has none."""
  return next((name for name, layout in ARCHITECTURES.items() if layout == (blocks, bottleneck)), None)


def named(variables: Mapping[str, Any], name: Callable[[Layer], str]) -> dict[str, np.ndarray]:
  """The arrays of an encoder in PyTorch's layout.

  Args:
    variables: {'params', 'batch_stats'} of a ResNet; kernels [H, W, in, out].
    name: maps a layer to its name.

  Returns:
    float32 arrays by name; kernels [out, in, H, W], contiguous.
  """
  return {array_name(path, name): to_torch(np.asarray(leaf, np.float32))
          for path, leaf in traverse_util.flatten_dict(dict(variables), sep='/').items()}


def array_name(path: str, name: Callable[[Layer], str]) -> str:
  """The target's name for one of our arrays, such as 'params/stem/conv/kernel'."""
  _, place = path.split('/', 1)
  module, field = place.rsplit('/', 1)
  return f'{name(layer(module))}.{FIELDS[field]}'


def to_torch(array: np.ndarray) -> np.ndarray:
  """A kernel [H, W, in, out] as [out, in, H, W], a matrix [in, out] as [out, in]; vectors are unchanged."""
  axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
  return np.ascontiguousarray(array.transpose(axes)) if axes else array


def from_torch(array: np.ndarray) -> np.ndarray:
  """The inverse of `to_torch`."""
  axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
  return np.ascontiguousarray(array.transpose(axes)) if axes else array
