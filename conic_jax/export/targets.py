"""Export targets: which encoders each can express, and how its weights are written."""
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from conic_jax.errors import UserError
from conic_jax.export import names
from conic_jax.models import ResNet
from conic_jax.models.resnet import ARCHITECTURES, EXPANSION

# File suffixes; Transformers reads a folder.
SUFFIXES = {'torchvision': '.safetensors', 'transformers': '', 'detectron2': '.pkl',
            'safetensors': '.safetensors'}


def check(target: str, network: ResNet) -> None:
  """Checks that the target can express the encoder.

  Raises:
    UserError: if it cannot; names the obstacle.
  """
  if obstacle := _obstacle(target, network):
    raise UserError(f'{target} cannot express this encoder: {obstacle}. --to=safetensors writes any.')


def check_out(target: str, out: Path) -> None:
  """Checks the output name.

  Raises:
    UserError: if the target would not read a file of that name, or it already exists.
  """
  if SUFFIXES[target] and out.suffix != SUFFIXES[target]:
    raise UserError(f'--out={out}: {target} reads a file whose name ends in {SUFFIXES[target]}.')
  for path in (out, card_path(target, out)):
    if path.exists():
      raise UserError(f'{path} is there already: delete it or give another --out.')


def card_path(target: str, out: Path) -> Path:
  """Path of the card: next to a file, or inside a folder."""
  return out / 'README.md' if target == 'transformers' else out.with_name(f'{out.name}.md')


def write(target: str, network: ResNet, variables: Mapping[str, Any], card: str, out: Path) -> list[Path]:
  """Writes the weights and the card, each atomically.

  Args:
    target: one of SUFFIXES.
    network: the encoder.
    variables: its {'params', 'batch_stats'}.
    card: text of the model card.
    out: the file, or Transformers' folder.

  Returns:
    Paths of the files written.

  Raises:
    UserError: if writing fails.
  """
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    if target == 'transformers':
      whole(out, lambda folder: _write_transformers(network, variables, card, folder))
      return sorted(out.iterdir())
    def weights_then_card(path: Path) -> None:
      (_write_detectron2 if target == 'detectron2' else _write_torchvision)(variables, path)
      whole(card_path(target, out), lambda path: path.write_text(card))
    whole(out, weights_then_card)
  except OSError as error:
    raise UserError(f'--out={out} cannot be written: {error}.') from error
  return [out, card_path(target, out)]


def whole(path: Path, write: Callable[[Path], Any]) -> None:
  """Writes a file or folder atomically: `write` gets a temporary path, renamed once complete."""
  temporary = path.with_name(f'{path.name}.tmp{os.getpid()}')
  try:
    write(temporary)
    temporary.replace(path)
  except BaseException:
    if temporary.is_dir():
      shutil.rmtree(temporary)
    temporary.unlink(missing_ok=True)
    raise


def _obstacle(target: str, network: ResNet) -> str | None:
  if target == 'safetensors':
    return None
  if network.stem != 'imagenet':
    return f"its stem is '{network.stem}', of 3×3 without a pool, and there it is of 7×7 with one"
  if 4 * 2**(len(network.blocks) - 1) > network.output_stride:
    return f'its last stages dilate (output_stride {network.output_stride}), and there they stride'
  if target == 'transformers':
    return None
  if network.width != 1:
    return f'its width is {network.width}, and there it is 1'
  if names.architecture(network.blocks, network.bottleneck) is None:
    return f'it has blocks {network.blocks}, and there it is one of {", ".join(ARCHITECTURES)}'
  return None


def _write_torchvision(variables: Mapping[str, Any], path: Path) -> None:
  _write_safetensors(names.named(variables, names.torchvision), path)


def _write_transformers(network: ResNet, variables: Mapping[str, Any], card: str, folder: Path) -> None:
  channels, expansion = int(64 * network.width), EXPANSION if network.bottleneck else 1
  config = {
    'architectures': ['ResNetModel'], 'model_type': 'resnet', 'num_channels': 3, 'hidden_act': 'relu',
    'layer_type': 'bottleneck' if network.bottleneck else 'basic', 'depths': list(network.blocks),
    'embedding_size': channels,
    'hidden_sizes': [channels * expansion * 2**stage for stage in range(len(network.blocks))],
    'downsample_in_first_stage': False, 'downsample_in_bottleneck': False}
  folder.mkdir()
  (folder / 'README.md').write_text(card)
  (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
  _write_safetensors(names.named(variables, names.transformers), folder / 'model.safetensors')


def _write_detectron2(variables: Mapping[str, Any], path: Path) -> None:
  content = {'model': names.named(variables, names.detectron2), '__author__': 'conic_jax',
             'matching_heuristics': True}
  # NumPy 2 writes a module name that NumPy 1, still common with Detectron2, does not know; both know the
  # old name. Replacing the first occurrence is enough: pickle refers back to it.
  path.write_bytes(pickle.dumps(content, protocol=3).replace(
    b'cnumpy._core.multiarray\n', b'cnumpy.core.multiarray\n', 1))


def _write_safetensors(arrays: Mapping[str, np.ndarray], path: Path) -> None:
  # The update counter of PyTorch's batch norm, which it reads only without a momentum.
  counters = {name.replace('running_mean', 'num_batches_tracked'): np.zeros((), np.int64)
              for name in arrays if name.endswith('running_mean')}
  # Not `save_file`, whose files are readable only by their owner.
  path.write_bytes(save({**arrays, **counters}, metadata={'format': 'pt'}))
