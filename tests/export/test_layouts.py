"""ResNets in files as other projects write them: found wherever they lie; other files are told."""
import argparse
import collections

import jax
import numpy as np
import pytest
import torch
from encoders import difference, draw_images, draw_variables, features_of, network_of
from ml_collections import ConfigDict
from safetensors.numpy import save_file
from test_read import drawn_module

from conic_jax.errors import UserError
from conic_jax.export import names, read, weights_file
from conic_jax.models import build_encoder

MODULE = drawn_module()
ARRAYS = dict(MODULE.state_dict())
NO_HEAD = {name: value for name, value in ARRAYS.items() if not name.startswith('fc.')}
HEADS = {'projector.0.weight': torch.zeros(4, 3), 'prototypes.weight': torch.zeros(9, 4)}


def under(prefix, arrays=NO_HEAD, add=0.0):
  return {prefix + name: value + add if value.is_floating_point() else value
          for name, value in arrays.items()}


def children(keep):
  """The module as a torch.nn.Sequential of its children, as by lightly; `keep` counts ReLU and pool."""
  kinds = {'conv1': 0, 'bn1': 1, 'layer1': 4, 'layer2': 5} if keep else {
    'conv1': 0, 'bn1': 1, 'layer1': 2, 'layer2': 3}
  return {f'{kinds[name.partition(".")[0]]}.{name.partition(".")[2]}': value
          for name, value in NO_HEAD.items()}


LAYOUTS = {
  'torchvision': ARRAYS, 'DataParallel': {'state_dict': under('module.', ARRAYS)},
  'MoCo': {'state_dict': {**under('module.encoder_q.', ARRAYS), **under('module.encoder_k.', ARRAYS, 1.0),
                          'module.queue': torch.zeros(2, 3)}},
  'MoCo v3': {'state_dict': {**under('module.base_encoder.'), **under('module.momentum_encoder.', add=1.0),
                             'module.base_encoder.fc.0.weight': torch.zeros(4, 3),
                             'module.predictor.0.weight': torch.zeros(4, 4)}, 'epoch': 300},
  'SimSiam': {'state_dict': {**under('module.encoder.'), 'module.encoder.fc.0.weight': torch.zeros(3, 3)}},
  'solo-learn': {'state_dict': {**under('backbone.'), **under('momentum_backbone.', add=1.0), **HEADS},
                 'hyper_parameters': {'method': 'byol'}, 'pytorch-lightning_version': '2.1'},
  'lightly': {'state_dict': {**{f'backbone.{name}': value for name, value in children(True).items()},
                             'projection_head.layers.0.weight': torch.zeros(3, 3)}},
  'lightly, own ResNet': {f'backbone.{name.replace("downsample", "shortcut")}': value
                          for name, value in children(False).items()},
  'lightly MoCo': {'state_dict': {**{f'backbone.{name}': value for name, value in children(True).items()},
                                  **{f'backbone_momentum.{name}': value + 1
                                     for name, value in children(True).items()}}},
  'mmselfsup': {'meta': {'epoch': 200},
                'state_dict': {**under('backbone.'), 'neck.mlp.0.weight': torch.zeros(3)}},
  'mmselfsup MoCo': {'state_dict': {**under('encoder_q.0.'), **under('encoder_k.0.', add=1.0)}},
  'mmselfsup BYOL': {'state_dict': {**under('online_net.0.'), **under('target_net.0.', add=1.0)}},
  'VISSL': {'classy_state_dict': {'base_model': {'model': {
    'trunk': under('_feature_blocks.'), 'heads': {'0.clf.weight': torch.zeros(3)}}}}},
  'PyContrast': {'opt': argparse.Namespace(lr=0.03), 'model': under('module.encoder.module.'),
                 'model_ema': under('module.encoder.module.', add=1.0), 'epoch': 200},
  'DINO': {'student': {**under('module.backbone.', add=1.0), 'module.head.mlp.0.weight': torch.zeros(3)},
           'teacher': {**under('backbone.'), 'head.mlp.0.weight': torch.zeros(3)},
           'args': argparse.Namespace(arch='resnet50', lr=np.float64(0.3)), 'epoch': 800},
  'DINO, one network': {'state_dict': under('student.backbone.')},
  'SwAV': {**under('module.'), 'module.projection_head.0.weight': torch.zeros(3), 'module.prototypes.weight':
           torch.zeros(3)},
  'Barlow Twins': {'epoch': 1000, 'model': {**under('module.backbone.'),
                                            'module.bn.running_mean': torch.zeros(3)}},
  'torch.compile': under('_orig_mod.', ARRAYS), 'compiled in parallel': {'model': under('module._orig_mod.')},
  'model': under('model.'), 'encoder': {'model_state_dict': under('encoder.')},
  'detection': {'model': {**under('backbone.body.'), 'rpn.conv.weight': torch.zeros(3)}}}


@pytest.fixture(scope='module')
def expected():
  """Images, and the features that the module has of them."""
  images = draw_images(64)
  with torch.no_grad():
    return images, MODULE(torch.tensor(images.transpose(0, 3, 1, 2)))


@pytest.mark.parametrize('layout', LAYOUTS)
def test_the_resnet_is_found_wherever_it_lies(layout, expected, tmp_path):
  torch.save(LAYOUTS[layout], tmp_path / 'x.pth')
  config, variables = read.load(tmp_path / 'x.pth')
  images, features = expected
  network = build_encoder(ConfigDict(config), np.float32)
  assert difference(features_of(network, variables, images), features) <= 1e-4


def test_a_cifar_stem_and_plain_blocks_in_a_list(tmp_path):
  network = network_of('resnet18', stem='cifar', blocks=(1, 1, 1), width=0.125)
  variables = draw_variables(network)
  numbers = {'conv1': 0, 'bn1': 1, 'layer1': 2, 'layer2': 3, 'layer3': 4}
  arrays = {f'net.{numbers[name.partition(".")[0]]}.{name.partition(".")[2]}': array
            for name, array in names.named(variables, names.torchvision).items()}
  save_file(arrays, tmp_path / 'x.safetensors')
  config, found = read.load(tmp_path / 'x.safetensors')
  assert (config['stem'], config['blocks'], config['name']) == ('cifar', (1, 1, 1), 'resnet18')
  jax.tree.map(np.testing.assert_array_equal, found, variables)


@pytest.mark.parametrize(('content', 'message'), [
  ({name: torch.zeros(3) for name in ('blocks.0.attn.qkv.weight', 'patch_embed.proj.weight', 'norm')},
   r'no conv1.weight .* Its names begin with blocks\., patch_embed\., norm\.$'),
  ({'state_dict': {**under('module.encoder1.'), **under('module.encoder2.')}},
   r'holds 2 ResNets, under state_dict\.module\.encoder1\., state_dict\.module\.encoder2\.: save'),
  ({'model': {name: value for name, value in under('net.').items() if 'conv1.weight' not in name[:17]}},
   r'it has no model\.net\.conv1\.weight')])
def test_what_has_no_resnet_or_several_is_told(content, message, tmp_path):
  torch.save(content, tmp_path / 'x.pth')
  with pytest.raises(UserError, match=message):
    read.load(tmp_path / 'x.pth')


def saved(path, old):
  torch.save(ARRAYS, path, _use_new_zipfile_serialization=not old)
  return path.read_bytes()


@pytest.mark.parametrize('suffix', ['.pth', '.PTH', '.pt', '.safetensors'])
@pytest.mark.parametrize(('start', 'message'), [
  (b'', 'it is empty'), (b'<!DOCTYPE html><html>', 'it is a web page, not the weights: download the file'),
  (b'\n <html>', 'a web page'), (b'version https://git-lfs.github.com/spec/v1\noid', r'git lfs pull'),
  (b'\x1f\x8b\x08', 'a gzip archive: unpack it'), (b'\x89HDF\r\n', 'an HDF5 file')])
def test_what_is_no_file_of_weights_is_named(suffix, start, message, tmp_path):
  path = tmp_path / f'x{suffix}'
  path.write_bytes(start and start + bytes(600))
  with pytest.raises(UserError, match=f'cannot be read: .*{message}') as error:
    read.load(path)
  assert 'pickled' not in str(error.value)


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('share', [0.3, 0.7, 0.999])
def test_a_file_that_is_cut_short_is_told(old, share, tmp_path):
  path = tmp_path / 'x.pth'
  content = saved(path, old)
  path.write_bytes(content[:int(share * len(content))])
  with pytest.raises(UserError, match=r'cannot be read: it is cut short'):
    read.load(path)


def test_a_safetensors_file_that_is_cut_short_is_told(tmp_path):
  save_file({name: value.numpy() for name, value in ARRAYS.items()}, tmp_path / 'x.safetensors')
  content = (tmp_path / 'x.safetensors').read_bytes()
  for end in (5, 100, len(content) - 9):
    (tmp_path / 'x.safetensors').write_bytes(content[:end])
    with pytest.raises(UserError, match=r'cannot be read as safetensors .* damaged or cut short'):
      read.load(tmp_path / 'x.safetensors')


@pytest.mark.parametrize('name', ['x.SAFETENSORS', 'x.pth', 'x'])
def test_the_content_tells_what_a_file_is(name, tmp_path):
  arrays = {name: value.numpy() for name, value in ARRAYS.items()}
  save_file(arrays, tmp_path / name)
  assert weights_file.read_arrays(tmp_path / name).keys() == arrays.keys()
  other = tmp_path / 'y.Safetensors'
  torch.save(ARRAYS, other)
  assert weights_file.read_arrays(other).keys() == arrays.keys()


def test_settings_beside_the_arrays_are_read_over(tmp_path):
  torch.save({'model': collections.OrderedDict(ARRAYS), 'args': argparse.Namespace(a=1),
              'best': np.float64(0.5), 'last': np.float32(0.25),
              'optimizer': {'state': {0: {'momentum': torch.zeros(3)}}}}, tmp_path / 'x.pth')
  assert weights_file.read_arrays(tmp_path / 'x.pth').keys() == {f'model.{name}' for name in ARRAYS}
