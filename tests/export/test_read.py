"""Files of other tools: the same arrays on the way in and out again, and nothing that is pickled runs."""
import collections
import pathlib
import sys

import jax
import numpy as np
import pytest
import torch
from encoders import difference, draw_images, draw_variables, features_of, network_of
from ml_collections import ConfigDict
from safetensors.torch import load_file, save_file
from torch_resnet import ResNet as TorchResNet

from conic_jax.errors import UserError
from conic_jax.export import names, read, targets
from conic_jax.export.__main__ import export
from conic_jax.models import build_encoder

CHANGES = {'blocks': (2, 1), 'width': 0.125}


def drawn_module(bottleneck=True, stem='imagenet'):
  """A PyTorch network with random parameters and statistics and a head."""
  torch.manual_seed(0)
  module = TorchResNet((2, 1), bottleneck, 8, stem).eval()
  for part in module.modules():
    if isinstance(part, torch.nn.BatchNorm2d):
      for tensor in (part.weight.data, part.running_var):
        tensor.uniform_(0.5, 1.5)
      for tensor in (part.bias.data, part.running_mean):
        tensor.uniform_(-0.5, 0.5)
  module.fc = torch.nn.Linear(3, 2)
  return module


def as_moco(arrays):
  """MoCo's checkpoint: two encoders, a queue, and what is of no use here."""
  encoders = {f'module.encoder_{part}.{name}': value + (part == 'k')
              for part in 'qk' for name, value in arrays.items()}
  return {'epoch': 200, 'arch': 'resnet50', 'optimizer': {'state': {}, 'param_groups': [{'lr': 0.03}]},
          'state_dict': collections.OrderedDict(**{'module.queue': torch.zeros(2, 3)}, **encoders)}


@pytest.mark.parametrize('layout', ['safetensors', 'torch', 'parallel', 'moco', 'moco of old PyTorch'])
def test_every_layout_gives_the_same_features(layout, tmp_path):
  module = drawn_module()
  arrays, path = module.state_dict(keep_vars=True), tmp_path / 'x.pth.tar'
  if layout == 'safetensors':
    path = tmp_path / 'x.safetensors'
    save_file(arrays, path)
  elif layout == 'torch':
    torch.save(arrays, path)
  elif layout == 'parallel':
    torch.save({'state_dict': {f'module.{name}': value for name, value in arrays.items()}}, path)
  else:
    torch.save(as_moco(arrays), path, _use_new_zipfile_serialization=layout == 'moco')
  config, variables = read.load(path)
  network = build_encoder(ConfigDict(config), np.float32)
  assert network == network_of('resnet50', dtype=np.float32, **CHANGES)
  images = draw_images(64)
  with torch.no_grad():
    expected = module(torch.tensor(images.transpose(0, 3, 1, 2)))
  assert difference(features_of(network, variables, images), expected) <= 1e-4


@pytest.mark.parametrize(('name', 'stem'), [('resnet18', 'cifar'), ('resnet50', 'imagenet')])
def test_out_and_in_and_out_again_gives_the_same_arrays(name, stem, tmp_path):
  network = network_of(name, stem=stem, **CHANGES)
  variables = draw_variables(network)
  targets.write('safetensors', network, variables, 'card', tmp_path / 'a.safetensors')
  config, again = read.load(tmp_path / 'a.safetensors')
  jax.tree.map(np.testing.assert_array_equal, again, variables)
  assert build_encoder(ConfigDict(config), network.dtype) == network
  export(tmp_path / 'a.safetensors', 'safetensors', tmp_path / 'b.safetensors')
  assert (tmp_path / 'a.safetensors').read_bytes() == (tmp_path / 'b.safetensors').read_bytes()
  card = (tmp_path / 'b.safetensors.md').read_text()
  assert card.startswith('---\nlicense: unknown\n')
  assert 'from a.safetensors' in card
  assert '| data | not told by the file' in card


def test_a_whole_resnet18_is_known_by_its_name(tmp_path):
  network = network_of('resnet18')
  arrays = names.named(draw_variables(network), names.torchvision)
  torch.save({name: torch.tensor(array) for name, array in arrays.items()}, tmp_path / 'x.pth')
  config, _ = read.load(tmp_path / 'x.pth')
  assert config == {'name': 'resnet18', 'blocks': (), 'stem': 'imagenet', 'width': 1.0, 'zero_gamma': False,
                    'output_stride': 32}


class Bomb:
  """Makes a file when it is unpickled."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self._path,)


@pytest.mark.parametrize('new', [True, False])
def test_pickled_objects_are_refused_and_do_not_run(new, tmp_path):
  torch.save({**drawn_module().state_dict(), 'bomb': Bomb(tmp_path / 'ran')}, tmp_path / 'x.pth',
             _use_new_zipfile_serialization=new)
  with pytest.raises(UserError, match='could run code and are refused'):
    read.load(tmp_path / 'x.pth')
  assert not (tmp_path / 'ran').exists()


def test_a_whole_module_is_refused(tmp_path):
  torch.save(drawn_module(), tmp_path / 'x.pth')
  with pytest.raises(UserError, match='state_dict'):
    read.load(tmp_path / 'x.pth')


@pytest.mark.parametrize(('change', 'message'), [
    (lambda arrays: arrays.pop('layer1.1.bn2.bias'), r'1 are missing.* layer1\.1\.bn2\.bias'),
    (lambda arrays: arrays.update({'layer1.0.se.weight': torch.zeros(3)}), r'too many.* layer1\.0\.se'),
    (lambda arrays: arrays.update({'layer2.0.conv2.weight': torch.zeros(16, 2, 3, 3)}), r'layer2\.0\.conv2'),
    (lambda arrays: arrays.pop('conv1.weight'), 'no conv1.weight'),
    (lambda arrays: arrays.update({'conv1.weight': torch.zeros(8, 3, 5, 5)}), r'7×7 or 3×3.*\(8, 3, 5, 5\)'),
    (lambda arrays: arrays.update({'layer7.9999999999.conv1.weight': torch.zeros(3)}), 'missing')])
def test_what_is_no_such_resnet(change, message, tmp_path):
  arrays = dict(drawn_module().state_dict())
  change(arrays)
  save_file(arrays, tmp_path / 'x.safetensors')
  with pytest.raises(UserError, match=message):
    read.load(tmp_path / 'x.safetensors')


@pytest.mark.parametrize('name', ['x.safetensors', 'x.pth'])
def test_broken_files(name, tmp_path):
  with pytest.raises(UserError, match='There is no file'):
    read.load(tmp_path / name)
  (tmp_path / name).write_bytes(b'PK\3\4 nothing of the kind')
  with pytest.raises(UserError, match=f'{name} (cannot be read|is no file)'):
    read.load(tmp_path / name)


@pytest.mark.parametrize('content', [torch.zeros(3), {'state_dict': [torch.zeros(3)]}])
def test_arrays_without_names(content, tmp_path):
  torch.save(content, tmp_path / 'x.pth')
  with pytest.raises(UserError, match='no arrays by name'):
    read.load(tmp_path / 'x.pth')


def test_without_pytorch(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  (tmp_path / 'x.pth').touch()
  with pytest.raises(UserError, match='pip install torch'):
    read.load(tmp_path / 'x.pth')
  network = network_of(**CHANGES)
  targets.write('safetensors', network, draw_variables(network), 'card', tmp_path / 'x.safetensors')
  read.load(tmp_path / 'x.safetensors')


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32(dtype, tmp_path):
  save_file(drawn_module().to(dtype).state_dict(), tmp_path / 'x.safetensors')
  _, variables = read.load(tmp_path / 'x.safetensors')
  kernel = variables['params']['stem']['conv']['kernel']
  assert kernel.dtype == np.float32
  expected = load_file(tmp_path / 'x.safetensors')['conv1.weight'].float().numpy()
  np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), expected)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
  arrays = {name: tensor.clone() for name, tensor in drawn_module().state_dict().items()}
  arrays['conv1.weight'][0, 0, 0, 0] = float('nan')
  save_file(arrays, tmp_path / 'x.safetensors')
  with pytest.raises(UserError, match=r'x\.safetensors has weights that are NaN or infinite \(params\.st'):
    read.load(tmp_path / 'x.safetensors')
