"""Encoders with random weights and statistics, and a run of one, for the tests of this folder."""
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conic_jax.models import ResNet, build_encoder
from conic_jax.models.resnet import ARCHITECTURES
from conic_jax.run.checkpoints import Checkpoints
from conic_jax.run.state import LossScale, TrainState


def network_of(name='resnet18', **changes):
  blocks, bottleneck = ARCHITECTURES[name]
  return ResNet(**{'blocks': blocks, 'bottleneck': bottleneck, **changes})


def draw_variables(network, seed=0):
  """Parameters and running statistics, all of them random."""
  rng = np.random.default_rng(seed)
  def draw(path, leaf):
    if path[-1].key == 'kernel':
      scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
      return rng.standard_normal(leaf.shape, np.float32) * np.float32(scale)
    low, high = (0.5, 1.5) if path[-1].key in ('scale', 'var') else (-0.5, 0.5)
    return rng.uniform(low, high, leaf.shape).astype(np.float32)
  shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
  return jax.tree_util.tree_map_with_path(draw, shapes)


def draw_images(side, seed=1):
  return np.random.default_rng(seed).standard_normal((1, side, side, 3), np.float32)


@functools.partial(jax.jit, static_argnums=0)
def features_of(network, variables, images):
  """Features of a network; those of equal networks are compiled once."""
  return network.apply(variables, images)


def difference(features, expected):
  """The largest difference as a share of the largest feature."""
  features, expected = np.asarray(features), np.asarray(expected)
  assert features.shape == expected.shape
  return np.abs(features - expected).max() / np.abs(expected).max()


def assert_same_in_onnxruntime(path, network, variables, sides):
  """A file for ONNX gives the network's features, of batches of one image and of three."""
  onnxruntime = pytest.importorskip('onnxruntime')
  session = onnxruntime.InferenceSession(path)
  for side in sides:
    images = np.concatenate([draw_images(side)] * 4) * np.float32([1, 0.5, 0.5, 0.5]).reshape(4, 1, 1, 1)
    expected = features_of(network, variables, images)
    for rows in (slice(1), slice(1, 4)):
      features, = session.run(None, {'images': images[rows].transpose(0, 3, 1, 2)})
      assert difference(features, expected[rows]) <= 1e-4


def write_run(config, folder, summary):
  """A run of the config's encoder with random weights, at step 6: the encoder and its variables."""
  network = build_encoder(config.encoder, jnp.float32)
  variables = draw_variables(network)
  state = TrainState(
    step=jnp.int32(6), updates=jnp.int32(6), params={'encoder': variables['params'], 'head': jnp.zeros(3)},
    batch_stats={'encoder': variables['batch_stats']}, opt_state={}, memories={},
    loss_scale=LossScale.create(jnp.float32), rng=jax.random.key(0))
  checkpoints = Checkpoints(folder / 'checkpoints', keep=1)
  checkpoints.save(jax.tree.map(jnp.asarray, state), 6, {})
  checkpoints.close()
  (folder / 'config.json').write_text(config.to_json())
  (folder / 'summary.json').write_text(json.dumps(summary))
  return network, variables
