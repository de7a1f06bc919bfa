"""The residual networks."""
import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.models import ResNet, build_encoder
from conic_jax.models.resnet import Stem, conv, max_pool


def config(**changes):
  return types.SimpleNamespace(**{
      'name': 'resnet18', 'blocks': (), 'stem': 'imagenet', 'width': 1.0, 'zero_gamma': False,
      'output_stride': 32, **changes})


def small(bottleneck=True, **changes):
  return ResNet(**{'blocks': (1, 1), 'bottleneck': bottleneck, 'width': 0.125, 'stem': 'cifar',
                   'groups': 4, **changes})


def draw_variables(network, x, *args):
  """Random parameters and statistics, of the shapes that `init` gives."""
  rng = np.random.default_rng(1)
  def draw(path, leaf):
    if path[-1].key == 'kernel':
      return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(leaf.dtype)
    low, high = (0.5, 1.5) if path[-1].key in ('scale', 'var') else (-0.5, 0.5)
    return rng.uniform(low, high, leaf.shape).astype(leaf.dtype)
  shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, *args), x)
  return jax.tree_util.tree_map_with_path(draw, shapes)


def normalise(y, state, *path):
  """Batch norm by the running statistics, in float64."""
  params, stats = state['params'], state['batch_stats']
  for name in path:
    params, stats = params[name], stats[name]
  return (y - stats['mean']) / np.sqrt(np.float64(stats['var']) + 1e-5) * params['scale'] + params[
      'bias']


def images(batch=8, height=8, width=8, seed=0):
  return np.random.default_rng(seed).normal(size=(batch, height, width, 3)).astype(np.float32)


def convolve(x, kernel, stride, padding, dilation=1):
  """Cross-correlation of [B, H, W, C] with zero padding, in float64."""
  size = dilation * (len(kernel) - 1) + 1
  x = np.pad(np.float64(x), ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
  windows = windows[:, ::stride, ::stride, :, ::dilation, ::dilation]
  return np.einsum('bhwcij,ijcd->bhwd', windows, np.float64(kernel))


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'parameters', 'features'), [
    ('resnet18', 11_176_512, 512), ('resnet34', 21_284_672, 512), ('resnet50', 23_508_032, 2048),
    ('resnet101', 42_500_160, 2048), ('resnet152', 58_143_808, 2048)])
def test_sizes_are_torchvisions(name, parameters, features):
  encoder = build_encoder(config(name=name), jnp.float32)
  x = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  maps, state = jax.eval_shape(lambda x: encoder.init_with_output(jax.random.key(0), x, stages=True), x)
  assert sum(leaf.size for leaf in jax.tree.leaves(state['params'])) == parameters
  assert encoder.num_features == features
  assert maps['features'].shape == (2, features)
  sides = {'stem': 56, 'stage1': 56, 'stage2': 28, 'stage3': 14, 'stage4': 7}
  assert {key: leaf.shape[1] for key, leaf in maps.items() if key != 'features'} == sides


def test_names():
  state = jax.eval_shape(small().init, jax.random.key(0), images())
  paths = {jax.tree_util.keystr(path, simple=True, separator='/')
           for path, _ in jax.tree_util.tree_leaves_with_path(state['params'])}
  assert {'stem/conv/kernel', 'stem/norm/scale', 'stage1/block0/conv1/kernel',
          'stage2/block0/norm3/bias', 'stage2/block0/shortcut/kernel',
          'stage2/block0/shortcut_norm/scale'} <= paths


@pytest.mark.parametrize('side', [11, 12])
@pytest.mark.parametrize(('size', 'stride', 'dilation'), [
    (7, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (1, 1, 1), (1, 2, 1)])
def test_convolutions_are_padded_as_pytorch_pads(size, stride, dilation, side):
  layer = conv(4, size, jnp.float32, None, stride, dilation)
  x = images(2, side, side + 1)
  state = draw_variables(layer, x)
  expected = convolve(x, state['params']['kernel'], stride, dilation * (size // 2), dilation)
  np.testing.assert_allclose(jax.jit(layer.apply)(state, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('side', [13, 16])
def test_imagenet_stem(side):
  stem, x = Stem(4, 'imagenet', 1, jnp.float32), images(2, side, side)
  state = draw_variables(stem, x, 'frozen', None, None)
  y = normalise(convolve(x, state['params']['conv']['kernel'], 2, 3), state, 'norm')
  y = np.pad(np.maximum(y, 0), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  expected = np.lib.stride_tricks.sliding_window_view(y, (3, 3), (1, 2))[:, ::2, ::2].max((-1, -2))
  actual = jax.jit(lambda x: stem.apply(state, x, 'frozen', None, None))(x)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('bottleneck', [True, False])
def test_whole_network_against_float64(bottleneck):
  encoder, x = small(bottleneck), images(2, 6, 6)
  state = draw_variables(encoder, x)
  y = convolve(x, state['params']['stem']['conv']['kernel'], 1, 1)
  y = np.maximum(normalise(y, state, 'stem', 'norm'), 0)
  for stage, stride in (('stage1', 1), ('stage2', 2)):
    block = state['params'][stage]['block0']
    layers = ((1, 0), (stride, 1), (1, 0)) if bottleneck else ((stride, 1), (1, 1))
    shortcut = y
    for index, (step, padding) in enumerate(layers, 1):
      y = y if index == 1 else np.maximum(y, 0)
      y = convolve(y, block[f'conv{index}']['kernel'], step, padding)
      y = normalise(y, state, stage, 'block0', f'norm{index}')
    if 'shortcut' in block:
      shortcut = convolve(shortcut, block['shortcut']['kernel'], stride, 0)
      shortcut = normalise(shortcut, state, stage, 'block0', 'shortcut_norm')
    y = np.maximum(y + shortcut, 0)
  maps = jax.jit(lambda x: encoder.apply(state, x, stages=True))(x)
  np.testing.assert_allclose(maps['stage2'], y, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(maps['features'], y.mean((1, 2)), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(jax.jit(encoder.apply)(state, x), maps['features'], rtol=1e-5)


def of_four_stages(bottleneck, output_stride):
  """A network, its shapes and the function that gives its maps."""
  network = small(bottleneck, blocks=(1, 1, 1, 2), width=0.0625, stem='imagenet', output_stride=output_stride)
  shapes = jax.eval_shape(network.init, jax.random.key(0), images(1, 64, 64))
  return network, shapes, jax.jit(lambda state, x: network.apply(state, x, stages=True))


@functools.cache
def strided_maps(bottleneck):
  """Parameters of the network of stride 32, their shapes and its maps."""
  (network, shapes, maps), x = of_four_stages(bottleneck, 32), images(1, 64, 64)
  state = draw_variables(network, x)
  return state, shapes, maps(state, x)


@pytest.mark.slow
@pytest.mark.parametrize(('output_stride', 'sides'), [(16, (16, 8, 4, 4)), (8, (16, 8, 8, 8))])
@pytest.mark.parametrize('bottleneck', [True, False])
def test_output_stride(bottleneck, output_stride, sides):
  """Every n-th pixel of the dilated map is the pixel of the strided map of the same weights."""
  state, shapes, strided = strided_maps(bottleneck)
  _, dilated_shapes, maps = of_four_stages(bottleneck, output_stride)
  assert shapes == dilated_shapes
  dilated = maps(state, images(1, 64, 64))
  assert tuple(dilated[f'stage{index}'].shape[1] for index in (1, 2, 3, 4)) == sides
  for index in (1, 2, 3, 4):
    expected = strided[f'stage{index}']
    step = dilated[f'stage{index}'].shape[1] // expected.shape[1]
    np.testing.assert_allclose(dilated[f'stage{index}'][:, ::step, ::step], expected, rtol=1e-4,
                               atol=1e-4)


def test_initialisation():
  state = jax.jit(small(zero_gamma=True, width=0.5).init)(jax.random.key(0), images(1))
  kernel = state['params']['stage2']['block0']['conv2']['kernel']
  assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * kernel.shape[-1])), rel=0.02)
  scales = {name: np.unique(state['params']['stage2']['block0'][name]['scale']).tolist()
            for name in ('norm1', 'norm2', 'norm3', 'shortcut_norm')}
  assert scales == {'norm1': [1], 'norm2': [1], 'norm3': [0], 'shortcut_norm': [1]}


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['batch', 'grouped'])
def test_split_batch_gives_the_same(mode, mesh8):
  encoder, x, mask = small(), images(), np.arange(8) != 5
  state = draw_variables(encoder, x)

  @jax.jit
  def step(state, x, mask):
    def loss(params):
      features, updated = encoder.apply({**state, 'params': params}, x, mode, mask,
                                        mutable=['batch_stats'])
      return jnp.sum(jnp.where(mask[:, None], jnp.sin(features), 0)), (features, updated)
    (_, aux), gradient = jax.value_and_grad(loss, has_aux=True)(state['params'])
    return aux, gradient
  split = jax.device_put((x, mask), meshes.batch_sharding(mesh8))
  actual = step(jax.device_put(state, meshes.replicated(mesh8)), *split)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), actual,
               step(state, x, mask))


def test_masked_images_are_as_if_absent():
  encoder, x = small(), images()
  state = draw_variables(encoder, x)
  run = jax.jit(lambda *args: encoder.apply(state, *args, mutable=['batch_stats']),
                static_argnums=1)
  features, updated = run(x, 'batch', np.arange(8) < 6)
  expected, expected_updated = run(x[:6], 'batch')
  np.testing.assert_allclose(features[:6], expected, rtol=1e-4, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), updated,
               expected_updated)


def test_bfloat16_computes_alone():
  encoder, x = small(dtype=jnp.bfloat16), images()
  state = draw_variables(encoder, x)
  maps, updated = jax.eval_shape(
      lambda x: encoder.apply(state, x, 'batch', stages=True, mutable=['batch_stats']), x)
  assert {leaf.dtype for leaf in jax.tree.leaves((state, updated))} == {jnp.dtype('float32')}
  assert {name: leaf.dtype for name, leaf in maps.items()} == {
      'stem': jnp.bfloat16, 'stage1': jnp.bfloat16, 'stage2': jnp.bfloat16,
      'features': jnp.float32}


def test_build_encoder_takes_blocks_and_tells_what_it_knows():
  encoder = build_encoder(config(name='resnet50', blocks=(1, 1), stem='cifar', width=0.5),
                          jnp.bfloat16, groups=2)
  assert encoder == ResNet((1, 1), True, 0.5, 'cifar', groups=2, dtype=jnp.bfloat16)
  assert encoder.num_features == 256
  for change, known in (({'name': 'resnet20'}, 'resnet18, resnet34'), ({'stem': 'tiny'}, 'cifar'),
                        ({'output_stride': 4}, '8, 16, 32')):
    with pytest.raises(UserError, match=known):
      build_encoder(config(**change), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize(('height', 'width'), [(8, 8), (7, 9), (1, 2)])
def test_max_pool_is_reduce_windows_with_its_gradient(height, width):
  x = images(2, height, width)
  reference = lambda x: nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
  weights = images(2, -(-height // 2), -(-width // 2), seed=1)

  @functools.partial(jax.jit, static_argnums=0)
  def pool(function, x):
    weighted = lambda x: (lambda pooled: (jnp.sum(pooled * weights), pooled))(function(x))
    (_, pooled), gradient = jax.value_and_grad(weighted, has_aux=True)(x)
    return pooled, gradient
  (pooled, gradient), (expected_pooled, expected) = pool(max_pool, x), pool(reference, x)
  np.testing.assert_array_equal(pooled, expected_pooled)
  np.testing.assert_allclose(gradient, expected, atol=1e-6)
