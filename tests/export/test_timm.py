"""Vision transformers and ConvNeXts: the same features in timm and Transformers, out and in again."""
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from encoders import assert_same_in_onnxruntime, difference, draw_images, features_of
from ml_collections import ConfigDict
from safetensors.torch import load_file, save_file
from support import reserved_port

from conic_jax.errors import UserError
from conic_jax.export import card, read, targets
from conic_jax.export.preprocessing import Preprocessing
from conic_jax.models import build_encoder

SIDE = 32
NETWORKS = {
  'vit': {'name': 'vit_tiny', 'blocks': (1, 1), 'width': 2 / 3, 'patch': 8},
  'vit of learned positions': {'name': 'vit_small', 'blocks': (1, 1), 'width': 1 / 8, 'patch': 16,
                               'positions': 'learned'},
  'vit of frozen patches': {'name': 'vit_tiny', 'blocks': (1,), 'width': 0.25, 'patch': 4,
                            'frozen_patches': True},
  'convnext': {'name': 'convnext_tiny', 'blocks': (1, 2, 1, 1), 'width': 1 / 12},
  'convnext of small patches': {'name': 'convnext_small', 'blocks': (1, 1), 'width': 1 / 6, 'patch': 2}}


class NoTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Gives timm's import the names of torchvision that it asks for; its networks use none of them."""

  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] == 'torchvision':
      return importlib.machinery.ModuleSpec(name, self, is_package=True)
    return None

  def create_module(self, spec):
    module = types.ModuleType(spec.name)
    module.__getattr__ = NamesOfNames('member', (), {}).__getattr__
    return module

  def exec_module(self, module):
    pass


class NamesOfNames(type):
  """A class whose attributes are such classes."""

  def __getattr__(cls, name):
    if name.startswith('__'):
      raise AttributeError(name)
    return NamesOfNames(name, (), {})


@pytest.fixture(scope='module')
def timm():
  """The library, without torchvision: PyPI's is compiled for CUDA, and breaks beside PyTorch for CPUs."""
  if not importlib.util.find_spec('timm'):
    pytest.skip('timm is not installed: pip install --no-deps timm')
  finder = NoTorchvision()
  sys.meta_path.insert(0, finder)
  try:
    import timm
  finally:
    sys.meta_path.remove(finder)
    for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
      del sys.modules[name]
  return timm


@functools.cache
def drawn(name):
  """A network of `NETWORKS` with random weights throughout."""
  network = build_encoder(ConfigDict(NETWORKS[name]), jnp.float32)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
  variables = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
  variables['batch_stats'] = jax.tree.map(lambda leaf: abs(leaf) + 1, variables.get('batch_stats', {}))
  return network, variables


def write(name, target, path):
  network, variables = drawn(name)
  targets.check(target, network)
  origin = card.of_file(path, SIDE)
  text = card.text(target, network, origin, path)
  targets.write(target, network, variables, text, path, Preprocessing(SIDE))
  images = draw_images(SIDE)
  return images, features_of(network, variables, images)


def features_of_card(path, text, timm):
  """What the example of a card gives, for the images in it."""
  call = next(line for line in text.splitlines() if line.startswith('model = ')).removeprefix('model = ')
  model = eval(call, {'timm': timm}).eval()
  model.load_state_dict(load_file(path), strict=True)
  return model


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in NETWORKS if name != 'convnext of small patches'])
def test_timm_gives_the_same_features(name, timm, tmp_path):
  path = tmp_path / 'x.safetensors'
  images, expected = write(name, 'timm', path)
  model = features_of_card(path, (tmp_path / 'x.safetensors.md').read_text(), timm)
  with torch.no_grad():
    features = model(torch.tensor(images.transpose(0, 3, 1, 2)))
  assert difference(features, expected) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize('name', NETWORKS)
def test_transformers_gives_the_same_features(name, tmp_path):
  import transformers  # Takes seconds.
  images, expected = write(name, 'transformers', tmp_path / 'x')
  model, report = transformers.AutoModel.from_pretrained(tmp_path / 'x', output_loading_info=True)
  assert not any(report.values())
  with torch.no_grad():
    features = model.eval()(torch.tensor(images.transpose(0, 3, 1, 2))).pooler_output
  assert difference(features, expected) <= 1e-4


@pytest.mark.parametrize('target', ['safetensors', 'transformers'])
@pytest.mark.parametrize('name', NETWORKS)
def test_what_was_written_is_read_again(name, target, tmp_path):
  path = tmp_path / ('x.safetensors' if target == 'safetensors' else 'x')
  images, expected = write(name, target, path)
  settings, variables = read.load(path if path.is_file() else path / 'model.safetensors')
  network = build_encoder(ConfigDict(settings), jnp.float32)
  assert difference(features_of(network, variables, images), expected) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(('call', 'side'), [
    (('vit_tiny_patch16_224', {}), 224), (('convnext_tiny', {}), 64),
    (('vit_small_patch16_224', {'patch_size': 8, 'img_size': 48}), 48)])
def test_networks_of_timm_are_read_and_known_by_name(call, side, timm, tmp_path):
  name, options = call
  torch.manual_seed(0)
  model = timm.create_model(name, **options).eval()
  arrays = {f'module.{array}': value for array, value in model.state_dict().items()}
  save_file(arrays, tmp_path / 'x.safetensors')
  settings, variables = read.load(tmp_path / 'x.safetensors')
  assert settings['name'] == '_'.join(name.split('_')[:2])
  assert settings['blocks'] == ()
  network = build_encoder(ConfigDict(settings), jnp.float32)
  images = draw_images(side)
  with torch.no_grad():
    expected = model.forward_head(model.forward_features(torch.tensor(images.transpose(0, 3, 1, 2))),
                                  pre_logits=True)
  assert difference(features_of(network, variables, images), expected) <= 1e-4


@pytest.mark.parametrize(('changes', 'message'), [
  ({}, r'it has 2 stages, and there it has 4'), ({'blocks': (1, 1, 1, 1)}, 'patches are of 2 pixels'),
  ({'blocks': (1, 1, 1, 1), 'patch': 4, 'output_stride': 8}, 'its last stages dilate')])
def test_what_timm_cannot_express_is_refused(changes, message):
  settings = {**NETWORKS['convnext of small patches'], **changes}
  with pytest.raises(UserError, match=f'timm cannot express this encoder: .*{message}'):
    targets.check('timm', build_encoder(ConfigDict(settings), jnp.float32))


def test_learned_positions_are_resized_as_timm_does(timm):
  from timm.layers import resample_abs_pos_embed

  from conic_jax.models.vit import resized_positions
  positions = np.random.default_rng(0).normal(size=(7, 7, 12)).astype(np.float32)
  flat = torch.tensor(positions.reshape(1, 49, 12))
  for side in (4, 14):
    theirs = resample_abs_pos_embed(flat, (side, side), num_prefix_tokens=0).reshape(side, side, 12)
    np.testing.assert_allclose(resized_positions(jnp.asarray(positions), side, side), theirs, atol=1e-4)


def test_arrays_of_another_transformer_are_refused(tmp_path):
  arrays = {name: torch.tensor(array) for name, array in targets.torch_arrays(*drawn('convnext')).items()}
  for change, message in (
      ({'stages.0.blocks.0.mlp.grn.weight': torch.zeros(3)}, r'too many, the first of them stages\.0.*grn'),
      ({'head.norm.bias': torch.zeros(3)}, r'none of the ConvNeXts.* head\.norm\.bias')):
    torch.save({**arrays, **change}, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=message):
      read.load(tmp_path / 'x.pth')


def test_heads_that_a_file_does_not_tell_are_refused(tmp_path):
  torch.save({'blocks.0.norm1.weight': torch.zeros(1280), 'cls_token': torch.zeros(1, 1, 1280),
              'pos_embed': torch.zeros(1, 5, 1280), 'patch_embed.proj.weight': torch.zeros(1280, 3, 2, 2)},
             tmp_path / 'x.pth')
  with pytest.raises(UserError, match='1280 channels, and the file does not tell how many heads'):
    read.load(tmp_path / 'x.pth')


def test_of_moco_v3_the_encoder_that_learns_is_read(tmp_path):
  network, variables = drawn('vit of learned positions')
  arrays = targets.torch_arrays(network, variables)
  both = {f'module.{encoder}.{name}': torch.tensor(array + (encoder == 'momentum_encoder'))
          for encoder in ('base_encoder', 'momentum_encoder') for name, array in arrays.items()}
  both['module.base_encoder.head.0.weight'] = torch.zeros(3, 3)
  torch.save({'state_dict': both}, tmp_path / 'x.pth')
  _, found = read.load(tmp_path / 'x.pth')
  assert jax.tree.structure(found['params']) == jax.tree.structure(variables['params'])
  np.testing.assert_array_equal(found['params']['norm']['scale'], variables['params']['norm']['scale'])


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'sides'), [
  ('vit of learned positions', (SIDE,)), ('convnext', (SIDE, SIDE + 32))])
def test_onnxruntime_gives_the_same_features(name, sides, tmp_path):
  for needed in ('onnxruntime', 'onnxscript'):
    pytest.importorskip(needed)
  network, variables = drawn(name)
  path = tmp_path / 'x.onnx'
  targets.check('onnx', network)
  targets.write('onnx', network, variables, card.text('onnx', network, card.of_file(path, SIDE), path), path,
                Preprocessing(SIDE))
  assert_same_in_onnxruntime(path, network, variables, sides)


@pytest.mark.slow
def test_a_hub_that_does_not_answer_costs_nothing_but_the_upload(tmp_path):
  network, variables = drawn('convnext')
  targets.write('safetensors', network, variables, 'card', tmp_path / 'x.safetensors')
  with reserved_port() as port:
    done = subprocess.run(
      [sys.executable, '-m', 'conic_jax.export', tmp_path / 'x.safetensors', '--to=transformers',
       f'--out={tmp_path / "x"}', '--upload=me/it'], text=True, capture_output=True, check=False,
      env={**os.environ, 'HF_ENDPOINT': f'http://127.0.0.1:{port}', 'HF_TOKEN': 'hf_none'})
  assert done.returncode == 1
  told, = [line for line in done.stderr.splitlines() if line.startswith('conic_jax: ')]
  assert told.startswith('conic_jax: --upload=me/it: the hub does not take it (')
  assert f'{tmp_path / "x"} is written and can be uploaded later' in told
  assert (tmp_path / 'x' / 'model.safetensors').exists()
