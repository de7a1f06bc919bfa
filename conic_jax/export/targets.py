"""Export targets: which encoders each can express, and how its weights are written and read."""
import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors.numpy import save

from conic_jax.errors import UserError
from conic_jax.export import names, onnx_file, vits
from conic_jax.export.families import of_network
from conic_jax.export.preprocessing import Preprocessing, transformers
from conic_jax.extensions import own_part
from conic_jax.models import ConvNeXt, EncoderModule, ResNet, VisionTransformer
from conic_jax.models.resnet import ARCHITECTURES, EXPANSION


@dataclasses.dataclass(frozen=True)
class Target:
  """A library or a format that encoders are written for.

  Attributes:
    suffix: ending of the file's name; '' for a folder.
    obstacle: what the target cannot express of a network, as a phrase; None if it can express it.
    write: writes the weights of a network to a path: (network, {'params', 'batch_stats'}, path).
    use: lines of Python for the card that read them; `card.text` fills in {file}, {name}, {timm}, {depth},
      {channels}, {mean255} and {std255}.
    library: the library's name on model hubs; '' for none.
    beside: texts of further files of a folder, by name, from how an image becomes an input.
    one_size: whether a vision transformer is written for one size of images, that of the preprocessing.
  """
  suffix: str
  obstacle: Callable[[EncoderModule], str | None]
  write: Callable[[EncoderModule, Mapping[str, Any], Path], None]
  use: str
  library: str = ''
  beside: Callable[[Preprocessing], Mapping[str, str]] = lambda preprocessing: {}
  one_size: bool = False


def find(name: str) -> Target:
  """The target with this name: one of `TARGETS`, or the `TARGET` of a module such as 'mine.arrays'.

  Raises:
    UserError: if there is none.
  """
  if target := own_part(name, 'TARGET'):
    return target
  if name not in TARGETS:
    raise UserError(f"There is no target '{name}' for --to; available: {', '.join(TARGETS)}, or a module of "
                    'yours.')
  return TARGETS[name]


def check(name: str, network: EncoderModule) -> None:
  """Checks that the target can express the encoder.

  Raises:
    UserError: if it cannot; names the obstacle.
  """
  if obstacle := find(name).obstacle(network):
    raise UserError(f'{name} cannot express this encoder: {obstacle}. --to=safetensors writes any ResNet, '
                    'ViT or ConvNeXt, --to=flax any encoder.')


def check_out(name: str, out: Path) -> None:
  """Checks the output name.

  Raises:
    UserError: if the target would not read a file of that name, or it already exists.
  """
  suffix = find(name).suffix
  if suffix and out.suffix != suffix:
    raise UserError(f'--out={out}: {name} reads a file whose name ends in {suffix}.')
  for path in (out, card_path(name, out)):
    if path.exists():
      raise UserError(f'{path} is there already: delete it or give another --out.')


def card_path(name: str, out: Path) -> Path:
  """Path of the card: next to a file, or inside a folder."""
  return out.with_name(f'{out.name}.md') if find(name).suffix else out / 'README.md'


def write(name: str, network: EncoderModule, variables: Mapping[str, Any], card: str, out: Path,
          preprocessing: Preprocessing | None = None) -> list[Path]:
  """Writes the weights and the card, each atomically.

  Args:
    name: the target.
    network: the encoder.
    variables: its {'params', 'batch_stats'}.
    card: text of the model card.
    out: the file or the folder.
    preprocessing: how an image becomes an input; None leaves out what a folder says about it.

  Returns:
    Paths of the files written.

  Raises:
    UserError: if writing fails.
  """
  target = find(name)
  if target.one_size and isinstance(network, VisionTransformer):
    network, variables = vits.at_size(network, variables, (preprocessing or Preprocessing()).size)
  def in_folder(folder: Path) -> None:
    folder.mkdir()
    texts = {'README.md': card, **(target.beside(preprocessing) if preprocessing else {})}
    for file, text in texts.items():
      (folder / file).write_text(text)
    target.write(network, variables, folder)
  def weights_then_card(path: Path) -> None:
    target.write(network, variables, path)
    whole(card_path(name, out), lambda path: path.write_text(card))
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    whole(out, weights_then_card if target.suffix else in_folder)
  except OSError as error:
    raise UserError(f'--out={out} cannot be written: {error}.') from error
  return [out, card_path(name, out)] if target.suffix else sorted(out.iterdir())


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


# ---- What a target cannot express -------------------------------------------------------------------


def _nothing(network: EncoderModule) -> None:
  """What a target that takes every network cannot express."""


def _not_of_resnets(network: EncoderModule) -> str | None:
  return None if isinstance(network, ResNet) else f'it is a {type(network).__name__}, and there a ResNet'


def _not_of_torch(network: EncoderModule) -> str | None:
  if isinstance(network, ResNet) or of_network(network):
    return None
  return f'it is a {type(network).__name__}, and there a ResNet, a vision transformer or a ConvNeXt'


def _not_of_transformers(network: EncoderModule) -> str | None:
  if obstacle := _not_of_torch(network):
    return obstacle
  if isinstance(network, ResNet) and network.stem != 'imagenet':
    return f"its stem is '{network.stem}', of 3×3 without a pool, and there it is of 7×7 with one"
  return _dilates(network)


def _dilates(network: EncoderModule) -> str | None:
  first = {ResNet: 4, ConvNeXt: getattr(network, 'patch', 0)}.get(type(network))
  if isinstance(network, ResNet | ConvNeXt) and first * 2**(len(network.blocks) - 1) > network.output_stride:
    return f'its last stages dilate (output_stride {network.output_stride}), and there they stride'
  return None


def _not_of_torchvision(network: EncoderModule) -> str | None:
  if obstacle := _not_of_resnets(network) or _not_of_transformers(network):
    return obstacle
  assert isinstance(network, ResNet)
  if network.width != 1:
    return f'its width is {network.width}, and there it is 1'
  if names.architecture(network.blocks, network.bottleneck) is None:
    return f'it has blocks {network.blocks}, and there it is one of {", ".join(ARCHITECTURES)}'
  return None


def _not_of_timm(network: EncoderModule) -> str | None:
  if isinstance(network, ResNet):
    return _not_of_torchvision(network)
  if isinstance(network, ConvNeXt) and len(network.blocks) != 4:
    return f'it has {len(network.blocks)} stages, and there it has 4'
  if isinstance(network, ConvNeXt) and network.patch == 2:
    return 'its patches are of 2 pixels, and there the first stage would stride after them'
  return _not_of_transformers(network)


# ---- Writers ----------------------------------------------------------------------------------------


def _write_flax(network: EncoderModule, variables: Mapping[str, Any], path: Path) -> None:
  flat = traverse_util.flatten_dict(dict(variables), sep='/')
  path.write_bytes(save({name: np.ascontiguousarray(array, np.float32) for name, array in flat.items()}))


def _write_torchvision(network: EncoderModule, variables: Mapping[str, Any], path: Path) -> None:
  _write_safetensors(torch_arrays(network, variables), path)


def torch_arrays(network: EncoderModule, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """An encoder's arrays by timm's names, which are torchvision's for a ResNet."""
  family = of_network(network)
  return family.to_timm(network, variables) if family else names.named(variables, names.torchvision)


def _write_transformers(network: EncoderModule, variables: Mapping[str, Any], folder: Path) -> None:
  if family := of_network(network):
    config, arrays = family.to_transformers(network, variables)
  else:
    assert isinstance(network, ResNet)
    config, arrays = _resnet_of_transformers(network), names.named(variables, names.transformers)
  (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
  _write_safetensors(arrays, folder / 'model.safetensors')


def _resnet_of_transformers(network: ResNet) -> dict[str, Any]:
  channels, expansion = int(64 * network.width), EXPANSION if network.bottleneck else 1
  return {
    'architectures': ['ResNetModel'], 'model_type': 'resnet', 'num_channels': 3, 'hidden_act': 'relu',
    'layer_type': 'bottleneck' if network.bottleneck else 'basic', 'depths': list(network.blocks),
    'embedding_size': channels,
    'hidden_sizes': [channels * expansion * 2**stage for stage in range(len(network.blocks))],
    'downsample_in_first_stage': False, 'downsample_in_bottleneck': False}


def _write_onnx(network: EncoderModule, variables: Mapping[str, Any], path: Path) -> None:
  onnx_file.write(network, variables, path, _write_transformers)


def _write_detectron2(network: EncoderModule, variables: Mapping[str, Any], path: Path) -> None:
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


# ---- The table --------------------------------------------------------------------------------------


TARGETS = {
  'torchvision': Target('.safetensors', _not_of_torchvision, _write_torchvision, '''\
model = torchvision.models.{name}()
model.fc = torch.nn.Identity()
model.load_state_dict(safetensors.torch.load_file('{file}'))
features = model.eval()(images)'''),
  'timm': Target('.safetensors', _not_of_timm, _write_torchvision, '''\
model = {timm}
model.load_state_dict(safetensors.torch.load_file('{file}'))
features = model.eval()(images)''', 'timm', one_size=True),
  'transformers': Target('', _not_of_transformers, _write_transformers, '''\
import PIL.Image
import torch
import transformers

processor = transformers.AutoImageProcessor.from_pretrained('{file}')
model = transformers.AutoModel.from_pretrained('{file}').eval()
image = PIL.Image.open('image.jpg')
with torch.no_grad():
  features = model(**processor(image, return_tensors='pt')).pooler_output.flatten(1)''', 'transformers',
    lambda preprocessing: {'preprocessor_config.json': transformers(preprocessing)}, one_size=True),
  'onnx': Target('.onnx', _not_of_transformers, _write_onnx, '''\
session = onnxruntime.InferenceSession('{file}')
features, = session.run(None, {{'images': images}})  # float32 [B, 3, H, W], normalised''', 'onnx',
    one_size=True),
  'detectron2': Target('.pkl', _not_of_torchvision, _write_detectron2, '''\
cfg.MODEL.WEIGHTS = '{file}'
cfg.MODEL.RESNETS.DEPTH = {depth}
cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = {channels}
cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
cfg.MODEL.PIXEL_MEAN = {mean255}
cfg.MODEL.PIXEL_STD = {std255}
cfg.INPUT.FORMAT = 'RGB\''''),
  'safetensors': Target('.safetensors', _not_of_torch, _write_torchvision, '''\
weights = safetensors.torch.load_file('{file}')  # by the names of {library}''', one_size=True),
  'flax': Target('.safetensors', _nothing, _write_flax, '''\
arrays = safetensors.numpy.load_file('{file}')
variables = flax.traverse_util.unflatten_dict(arrays, sep='/')
features = network.apply(variables, images)  # a {name} of conic_jax, images [B, H, W, 3]'''),
}
