"""The ConvNeXts; the tests of exports hold their features against timm's."""
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from conic_jax.errors import UserError
from conic_jax.models import ConvNeXt, build_encoder, distances


def images(height=16, width=16, batch=2, seed=0):
  return np.random.default_rng(seed).normal(size=(batch, height, width, 3)).astype(np.float32)


def draw_variables(network, x):
  shapes = jax.eval_shape(network.init, jax.random.key(0), x)
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


def norm(x, part):
  return ((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * part['scale']
          + part['bias'])


def by_hand(params, x, patch):
  """The features of a network of one stage with one block, in float64, a pixel at a time."""
  params = jax.tree.map(np.float64, params)
  block, height, width = params['stage1']['block0'], x.shape[0] // patch, x.shape[1] // patch
  first = np.zeros((height, width, params['stem']['bias'].size))
  for row in range(height):
    for column in range(width):
      pixels = x[patch * row:patch * row + patch, patch * column:patch * column + patch]
      first[row, column] = np.tensordot(pixels, params['stem']['kernel'], 3) + params['stem']['bias']
  first = norm(first, params['stem_norm'])
  padded, out = np.pad(first, ((3, 3), (3, 3), (0, 0))), np.zeros_like(first)
  for row in range(height):
    for column in range(width):
      window = padded[row:row + 7, column:column + 7]
      y = (window * block['depthwise']['kernel'][:, :, 0]).sum((0, 1)) + block['depthwise']['bias']
      y = norm(y, block['norm']) @ block['hidden']['kernel'] + block['hidden']['bias']
      y = y * (1 + erf(y / np.sqrt(2))) / 2
      y = y @ block['output']['kernel'] + block['output']['bias']
      out[row, column] = first[row, column] + y * block['scale']
  return norm(out.mean((0, 1)), params['norm'])


def test_features_by_hand():
  network, x = ConvNeXt((1,), 8, patch=2), images(8, 12)
  variables = draw_variables(network, x)
  expected = [by_hand(variables['params'], image, 2) for image in x]
  np.testing.assert_allclose(jax.jit(network.apply)(variables, x), expected, rtol=1e-4, atol=1e-4)


def test_without_their_strides_every_second_pixel_of_a_map_is_as_before():
  network, x = ConvNeXt((1, 1, 1), 4, patch=2), images(32, 48)
  variables = draw_variables(network, x)
  maps, dilated = (jax.jit(lambda variables, x, network=network: network.apply(variables, x, stages=True))(
    variables, x) for network in (network, network.clone(output_stride=2)))
  assert {dilated[f'stage{stage}'].shape[1:3] for stage in (1, 2, 3)} == {(16, 24)}
  np.testing.assert_array_equal(dilated['stage1'], maps['stage1'])
  for stage, step in (('stage2', 2), ('stage3', 4)):
    np.testing.assert_allclose(dilated[stage][:, ::step, ::step], maps[stage], rtol=1e-3, atol=1e-3)


def test_images_too_small_for_the_strides_are_refused():
  with pytest.raises(UserError, match=r'Images of 16 × 16 pixels are too small.* set config\.encoder\.patch'):
    jax.eval_shape(ConvNeXt((1, 1, 1, 1), 4).init, jax.random.key(0), images())


@pytest.mark.parametrize(('name', 'millions'), [('convnext_tiny', 27.8), ('convnext_small', 49.5)])
def test_the_common_networks(name, millions):
  network = build_encoder(types.SimpleNamespace(name=name), jnp.float32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.1)
  assert set(shapes) == {'params'}
  assert network.num_features == 768


@pytest.mark.parametrize(('changes', 'patch', 'channels'), [
  ({}, 4, 96), ({'stem': 'cifar'}, 1, 96), ({'patch': 2, 'width': 0.5}, 2, 48)])
def test_settings(changes, patch, channels):
  network = build_encoder(types.SimpleNamespace(name='convnext_tiny', **changes), jnp.float32)
  assert (network.patch, network.channels) == (patch, channels)


def test_distances_from_the_output():
  params = jax.eval_shape(ConvNeXt((1, 2), 4, patch=2).init, jax.random.key(0), images())['params']
  found = distances(params)
  assert found['stem']['kernel'] == found['stem_norm']['scale'] == 4
  assert found['stage1']['block0']['scale'] == 3
  assert found['stage2']['shortcut']['kernel'] == found['stage2']['block0']['scale'] == 2
  assert (found['stage2']['block1']['scale'], found['norm']['scale']) == (1, 0)
