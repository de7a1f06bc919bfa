"""PIC's classifier, and its multi-crop: the loss by hand, and what the rows learn from."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import as_method

from conic_jax import losses, methods
from conic_jax.command_line import load
from conic_jax.data.sampler import Sampler
from conic_jax.methods.conic_s import ConICS
from conic_jax.pretraining.identity import run_identity
from conic_jax.views import Views

N, BATCH = 24, 8
FLOAT32 = jnp.dtype(jnp.float32)


@pytest.fixture
def config(tiny_config):
  return as_method(tiny_config, 'pic', **{'views.count': 1, 'small_views.size': 8})


def test_its_window_is_a_plain_softmax_without_consistency(config, mesh8):
  config.classifier.window = 16
  method = methods.make(config, N, mesh8, FLOAT32)
  assert isinstance(method, ConICS)
  assert (method.alpha, method.softmax.negative_weight, method.softmax.num_instances) == (0, 1, 16)
  assert method.views == (Views(**config.views),)


@pytest.mark.slow
def test_multi_crop_is_the_mean_over_all_views_and_rows_learn_from_the_first(config, mesh8):
  """Against the network and the loss called for each view alone; batch norm sees a group at once."""
  config.small_views.count = 2
  method = methods.make(config, N, mesh8, FLOAT32)
  assert [(group.count, group.size, group.crop) for group in method.views] == [
    (1, 16, (0.15, 1.0)), (2, 8, (0.08, 0.14))]
  keys = jax.random.split(jax.random.key(1), 3)
  views = tuple(jax.random.normal(key, (BATCH, group.count, group.size, group.size, 3))
                for key, group in zip(keys, method.views))
  batch = {'views': views, 'id': jnp.arange(BATCH, dtype=jnp.int32) * 3, 'valid': jnp.arange(BATCH) != 2}
  params, batch_stats, memories = method.init(jax.random.key(0), batch)
  rng = jax.random.key(2)
  loss, aux = jax.jit(method.loss)(params, batch_stats, memories, batch, rng)

  rows = memories['rows'].weights[:N]
  by_view, stats = [], batch_stats
  for group in views:
    count = group.shape[1]
    features, stats = method.network.project(params, stats, group.reshape(-1, *group.shape[2:]),
                                     jnp.repeat(batch['valid'], count), mode='batch')
    for view in range(count):
      unit = losses.normalise(features[view::count])
      by_view.append(losses.instance_classification(unit, rows, batch['id'], config.temperature))
  wanted = np.stack(by_view, axis=1)[np.asarray(batch['valid'])].mean()
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6),
               aux.batch_stats, stats)

  share = 1 / (7 * 3)
  weights = np.where(np.asarray(batch['valid'])[:, None], [share, 0, 0], 0)
  np.testing.assert_allclose(aux.seen['rows'].sample_weights.reshape(BATCH, 3), weights, rtol=1e-6)


def test_its_config_is_the_releases():
  config = load('configs/pic.py:multi_crop')
  first, small = config.views, config.small_views
  assert (first.count, first.size, first.crop) == (1, 160, (0.14, 1.0))
  assert (small.count, small.size, small.crop) == (3, 96, (0.08, 0.14))
  assert (config.sampler.window, config.sampler.stride) == (131072, 16384)
  assert config.optimizer.learning_rate / config.batch_size == 0.03 / 256
  assert (config.temperature, config.head.norm, config.encoder.zero_gamma) == (0.2, False, True)
  # 128 numbers of N(0, 0.01²) have this norm.
  rows = 0.01 * np.random.default_rng(0).standard_normal((1000, config.head.features))
  np.testing.assert_allclose(config.classifier.norm, np.linalg.norm(rows, axis=1).mean(), rtol=0.01)
  assert load('configs/pic.py').small_views.count == 0


def test_a_run_goes_on_with_its_own_sampler_only(config):
  identity = lambda **window: run_identity(config, Sampler(N, BATCH, 0, **window), FLOAT32)
  assert identity()['config.sampler'] is None
  assert identity() == identity(window=N, stride=4)
  with config.unlocked():
    config.sampler.window, config.sampler.stride = 16, 4
  assert identity(window=16, stride=4)['config.sampler'] == {'window': 16, 'stride': 4}
