"""The files: the same function in PyTorch, arrays and nothing else for Detectron2, and what is refused."""
import io
import json
import pickle

import numpy as np
import pytest
import torch
from encoders import difference, draw_images, draw_variables, features_of, network_of
from safetensors import safe_open
from safetensors.torch import load_file
from torch_resnet import ResNet as TorchResNet

from conic_jax.errors import UserError
from conic_jax.export import targets

SMALL = {'blocks': (2, 1), 'width': 0.125}


class ArraysOnly(pickle.Unpickler):
  """Reads arrays and plain containers, and refuses whatever else a pickle calls."""

  ALLOWED = frozenset({('numpy.core.multiarray', '_reconstruct'), ('numpy', 'ndarray'), ('numpy', 'dtype')})

  def find_class(self, module, name):
    if (module, name) not in self.ALLOWED:
      raise pickle.UnpicklingError(f'{module}.{name}')
    return super().find_class(module, name)


@pytest.mark.slow
@pytest.mark.parametrize(('target', 'name', 'changes', 'side'), [
    ('torchvision', 'resnet18', {}, 64), ('torchvision', 'resnet50', {}, 64),
    ('safetensors', 'resnet18', {**SMALL, 'stem': 'cifar'}, 32),
    ('safetensors', 'resnet50', {**SMALL, 'stem': 'cifar'}, 32)])
def test_pytorch_gives_the_same_features(target, name, changes, side, tmp_path):
  network = network_of(name, **changes)
  variables, images = draw_variables(network), draw_images(side)
  targets.write(target, network, variables, 'card', tmp_path / 'x.safetensors')
  module = TorchResNet(network.blocks, network.bottleneck, int(64 * network.width), network.stem).eval()
  module.load_state_dict(load_file(tmp_path / 'x.safetensors'), strict=True)
  with torch.no_grad():
    features = module(torch.tensor(images.transpose(0, 3, 1, 2)))
  assert difference(features, features_of(network, variables, images)) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'changes'), [('resnet18', SMALL), ('resnet50', SMALL)])
def test_transformers_gives_the_same_features(name, changes, tmp_path):
  from transformers.models.resnet.modeling_resnet import ResNetModel  # Takes seconds.
  network = network_of(name, **changes)
  variables, images = draw_variables(network), draw_images(64)
  written = targets.write('transformers', network, variables, 'card', tmp_path / 'x')
  assert [path.name for path in written] == ['README.md', 'config.json', 'model.safetensors']
  model, report = ResNetModel.from_pretrained(tmp_path / 'x', output_loading_info=True)
  assert not any(report.values())
  with torch.no_grad():
    features = model.eval()(torch.tensor(images.transpose(0, 3, 1, 2))).pooler_output.flatten(1)
  assert difference(features, features_of(network, variables, images)) <= 1e-4


def test_transformers_config_of_a_resnet50(tmp_path):
  network = network_of('resnet50', **SMALL)
  targets.write('transformers', network, draw_variables(network), 'card', tmp_path / 'x')
  config = json.loads((tmp_path / 'x' / 'config.json').read_text())
  assert (config['embedding_size'], config['hidden_sizes'], config['depths']) == (8, [32, 64], [2, 1])
  assert (config['layer_type'], config['downsample_in_bottleneck']) == ('bottleneck', False)
  with safe_open(tmp_path / 'x' / 'model.safetensors', 'np') as file:
    assert file.metadata() == {'format': 'pt'}


@pytest.mark.slow
def test_detectron2_gets_arrays_by_its_names(tmp_path):
  network = network_of('resnet50')
  variables = draw_variables(network)
  targets.write('detectron2', network, variables, 'card', tmp_path / 'x.pkl')
  content = ArraysOnly(io.BytesIO((tmp_path / 'x.pkl').read_bytes())).load()
  assert content.keys() == {'model', '__author__', 'matching_heuristics'}
  assert content['matching_heuristics'] is True
  arrays = content['model']
  assert {type(array) for array in arrays.values()} == {np.ndarray}
  assert {array.dtype for array in arrays.values()} == {np.dtype('float32')}
  assert all(array.flags.writeable for array in arrays.values())
  shapes = {name: array.shape for name, array in arrays.items()}
  # Every convolution has a weight and the four arrays of its norm.
  assert len(shapes) == 5 * (1 + 3 * 16 + 4)
  assert {name.split('.')[0] for name in shapes} == {'stem', 'res2', 'res3', 'res4', 'res5'}
  assert shapes.items() >= {
      'stem.conv1.weight': (64, 3, 7, 7), 'stem.conv1.norm.running_var': (64,),
      'res2.0.conv1.weight': (64, 64, 1, 1), 'res2.0.shortcut.weight': (256, 64, 1, 1),
      'res3.0.conv2.weight': (128, 128, 3, 3), 'res4.5.conv3.norm.weight': (1024,),
      'res5.0.shortcut.norm.running_mean': (2048,), 'res5.2.conv3.norm.bias': (2048,)}.items()
  kernel = variables['params']['stage2']['block0']['conv2']['kernel']
  np.testing.assert_array_equal(arrays['res3.0.conv2.weight'], kernel.transpose(3, 2, 0, 1))


@pytest.mark.parametrize(('target', 'changes', 'obstacle'), [
    ('torchvision', {'stem': 'cifar'}, "stem is 'cifar'"), ('detectron2', {'stem': 'cifar'}, 'stem'),
    ('transformers', {'stem': 'cifar'}, 'stem'), ('torchvision', {'width': 0.5}, 'width is 0.5'),
    ('detectron2', {'width': 2.0}, 'width is 2'), ('torchvision', {'blocks': (2, 2)}, r'blocks \(2, 2\)'),
    ('detectron2', {'blocks': (1, 1, 1, 1)}, 'blocks'), ('torchvision', {'output_stride': 8}, 'dilate'),
    ('transformers', {'output_stride': 16}, 'output_stride 16')])
def test_what_a_target_cannot_express(target, changes, obstacle):
  network = network_of(**changes)
  with pytest.raises(UserError, match=f'^{target} cannot.*{obstacle}.*--to=safetensors'):
    targets.check(target, network)
  targets.check('safetensors', network)


def test_what_a_target_can_express():
  for target in targets.TARGETS:
    targets.check(target, network_of('resnet50'))
  targets.check('transformers', network_of(**SMALL))
  # Two stages shrink by 8 alone: nothing dilates.
  targets.check('transformers', network_of(blocks=(1, 1), output_stride=8))


def test_names_that_are_wrong_or_taken(tmp_path):
  for target, end in (('torchvision', '.safetensors'), ('detectron2', '.pkl')):
    targets.check_out(target, tmp_path / f'x{end}')
    with pytest.raises(UserError, match=f'ends in {end}'):
      targets.check_out(target, tmp_path / 'x.pth')
  (tmp_path / 'x.safetensors.md').touch()
  with pytest.raises(UserError, match=r'x\.safetensors\.md is there already'):
    targets.check_out('safetensors', tmp_path / 'x.safetensors')
  targets.check_out('detectron2', tmp_path / 'x.pkl')
  with pytest.raises(UserError, match='is there already'):
    targets.check_out('transformers', tmp_path)


@pytest.mark.parametrize(('target', 'name'), [('safetensors', 'x.safetensors'), ('transformers', 'x')])
def test_a_failed_write_leaves_nothing_half(target, name, tmp_path, monkeypatch):
  def full(arrays, path):
    path.write_bytes(b'half')
    raise OSError('No space left')
  monkeypatch.setattr(targets, '_write_safetensors', full)
  network = network_of(**SMALL)
  with pytest.raises(UserError, match='No space left'):
    targets.write(target, network, draw_variables(network), 'card', tmp_path / name)
  assert not list(tmp_path.iterdir())
