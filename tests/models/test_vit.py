"""The vision transformers."""
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from conic_jax.errors import UserError
from conic_jax.models import VisionTransformer, build_encoder, distances
from conic_jax.models.vit import resized_positions, sincos_positions

TINY = VisionTransformer((1, 1), channels=128, patch=4)


def images(height=8, width=8, batch=2, seed=0):
  return np.random.default_rng(seed).normal(size=(batch, height, width, 3)).astype(np.float32)


def draw_variables(network, x):
  shapes = jax.eval_shape(network.init, jax.random.key(0), x)
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


def settings(**changes):
  return types.SimpleNamespace(**{'name': 'vit_tiny', **changes})


class ByHand:
  """The features of one image, in float64, a token at a time."""

  def __init__(self, params, patch):
    self.params, self.patch = jax.tree.map(np.float64, params), patch

  def norm(self, x, part):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * part['scale'] + part['bias']

  def linear(self, x, part):
    return x @ part['kernel'] + part['bias']

  def attention(self, tokens, part):
    channels = tokens.shape[1]
    joined = np.stack([self.linear(token, part['qkv']) for token in tokens])
    out = np.zeros_like(tokens)
    for head in range(channels // 64):
      own = slice(64 * head, 64 * head + 64)
      query, key, value = (joined[:, third * channels:][:, own] for third in range(3))
      for token in range(len(tokens)):
        weights = np.exp(query[token] @ key.T / 8)
        out[token, own] = weights / weights.sum() @ value
    return np.stack([self.linear(token, part['projection']) for token in out])

  def block(self, tokens, part):
    normed = np.stack([self.norm(token, part['norm1']) for token in tokens])
    tokens = tokens + self.attention(normed, part)
    hidden = np.stack([self.linear(self.norm(token, part['norm2']), part['hidden']) for token in tokens])
    hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
    return tokens + np.stack([self.linear(token, part['output']) for token in hidden])

  def positions(self, height, width, channels):
    out = np.zeros((height, width, channels))
    quarter = channels // 4
    for i in range(quarter):
      frequency = 10_000 ** (-i / quarter)
      for y in range(height):
        for x in range(width):
          out[y, x, i::quarter] = np.sin(y * frequency), np.cos(y * frequency), np.sin(x * frequency), \
            np.cos(x * frequency)
    return out

  def features(self, image):
    size, stem = self.patch, self.params['stem']
    height, width, channels = image.shape[0] // size, image.shape[1] // size, stem['bias'].size
    places = self.positions(height, width, channels)
    tokens = [self.params['token']]
    for y in range(height):
      for x in range(width):
        pixels = image[size * y:size * y + size, size * x:size * x + size]
        tokens.append(np.tensordot(pixels, stem['kernel'], 3) + stem['bias'] + places[y, x])
    tokens = np.stack(tokens)
    for stage in ('stage1', 'stage2'):
      tokens = self.block(tokens, self.params[stage]['block0'])
    return np.stack([self.norm(token, self.params['norm']) for token in tokens])


@pytest.mark.parametrize('shape', [(8, 8), (4, 12)])
def test_features_and_last_map_by_hand(shape):
  x = images(*shape)
  variables = draw_variables(TINY, x)
  found = jax.jit(lambda variables, x: TINY.apply(variables, x, stages=True))(variables, x)
  for image, features, last in zip(x, found['features'], found['stage2'], strict=True):
    expected = ByHand(variables['params'], 4).features(image)
    np.testing.assert_allclose(features, expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(last.reshape(-1, 128), expected[1:], rtol=1e-4, atol=1e-4)


def test_maps_have_the_stride_of_patches_or_less():
  x = images(32, 48)
  for patch, stride, size in ((16, 32, (2, 3)), (16, 8, (4, 6)), (8, 8, (4, 6)), (4, 8, (8, 12))):
    network = VisionTransformer((1, 2), 16, patch, output_stride=stride)
    maps = jax.eval_shape(lambda x, network=network: network.init_with_output(
      jax.random.key(0), x, stages=True)[0], x)
    assert set(maps) == {'stem', 'stage1', 'stage2', 'features'}
    assert {maps[name].shape for name in ('stem', 'stage1', 'stage2')} == {(2, *size, 16)}
    assert maps['features'].shape == (2, network.num_features)


def test_statistics_hold_the_frozen_patches_alone():
  x = images()
  assert set(jax.eval_shape(TINY.init, jax.random.key(0), x)) == {'params'}
  frozen = TINY.clone(frozen_patches=True)
  variables = jax.jit(frozen.init)(jax.random.key(0), x)
  assert 'stem' not in variables['params']
  shapes = jax.tree.map(jnp.shape, variables['batch_stats'])
  assert shapes == {'stem': {'kernel': (4, 4, 3, 128), 'bias': (128,)}}
  features, changed = jax.jit(lambda *inputs: frozen.apply(*inputs, 'batch', mutable=['batch_stats']))(
    variables, x)
  jax.tree.map(np.testing.assert_array_equal, changed['batch_stats'], variables['batch_stats'])
  free = {'params': {**variables['params'], 'stem': variables['batch_stats']['stem']}}
  np.testing.assert_array_equal(features, jax.jit(TINY.apply)(free, x))


def test_learned_positions_are_those_of_the_first_size_and_resized_for_others():
  network = TINY.clone(positions='learned')
  variables = draw_variables(network, images())
  positions = variables['params']['stem']['positions']
  assert positions.shape == (2, 2, 128)
  larger = {'params': {**variables['params'], 'stem': {
    **variables['params']['stem'], 'positions': resized_positions(jnp.asarray(positions), 3, 4)}}}
  x, apply = images(12, 16), jax.jit(network.apply)
  np.testing.assert_allclose(apply(variables, x), apply(larger, x), atol=1e-6)


def test_a_patch_that_does_not_cover_the_images_is_refused():
  with pytest.raises(UserError, match=r'Patches of 4 pixels do not cover images of 8 × 10: set config'):
    jax.eval_shape(TINY.init, jax.random.key(0), images(8, 10))


def test_weights_start_as_moco_v3s():
  params = jax.jit(VisionTransformer((1,), 64, 8).init)(jax.random.key(0), images())['params']
  for part, bound in (('stem', np.sqrt(6 / (192 + 64))), ('qkv', np.sqrt(6 / 128)),
                      ('projection', np.sqrt(6 / 128)), ('hidden', np.sqrt(6 / (64 + 256)))):
    layer = params['stem'] if part == 'stem' else params['stage1']['block0'][part]
    assert 0.98 * bound < np.abs(layer['kernel']).max() <= bound
    assert not layer['bias'].any()
  assert np.abs(params['token']).max() < 1e-5


@pytest.mark.parametrize(('name', 'millions'), [('vit_tiny', 5.5), ('vit_small', 21.6), ('vit_base', 85.6)])
def test_the_common_networks(name, millions):
  network = build_encoder(settings(name=name), jnp.float32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.1)
  assert network.num_features == network.channels == {'tiny': 192, 'small': 384, 'base': 768}[name[4:]]


@pytest.mark.parametrize(('changes', 'patch', 'channels'), [
  ({}, 16, 192), ({'stem': 'cifar'}, 4, 192), ({'patch': 8, 'stem': 'cifar'}, 8, 192),
  ({'width': 0.25}, 16, 48),
  ({'width': 0.5}, 16, 128), ({'width': 2}, 16, 384)])
def test_settings(changes, patch, channels):
  network = build_encoder(settings(**changes), jnp.float32)
  assert (network.patch, network.channels) == (patch, channels)


def test_unknown_positions_are_refused():
  with pytest.raises(UserError, match=r"encoder\.positions 'rope' is unknown: set it to one of sincos"):
    build_encoder(settings(positions='rope'), jnp.float32)


def test_sincos_positions_differ_for_every_patch():
  places = np.asarray(sincos_positions(14, 14, 64)).reshape(196, 64)
  assert len(np.unique(places, axis=0)) == 196


def test_distances_from_the_output():
  params = jax.eval_shape(VisionTransformer((1, 2), 16, 4).init, jax.random.key(0), images())['params']
  found = distances(params)
  assert jax.tree.structure(found) == jax.tree.structure(params)
  assert found['token'] == found['stem']['kernel'] == 4
  assert found['stage1']['block0']['qkv']['kernel'] == 3
  assert [found['stage2'][f'block{index}']['norm1']['scale'] for index in range(2)] == [2, 1]
  assert found['norm']['scale'] == 0


def test_distances_need_blocks():
  with pytest.raises(UserError, match=r'no blocks.* set config\.finetune\.layer_decay to 1'):
    distances({'conv': {'kernel': np.zeros(3)}})
