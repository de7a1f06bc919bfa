"""SimCLR's loss from plain passes, against PyTorch's cross entropy."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import as_method

from conic_jax import methods, optim
from conic_jax.errors import UserError
from conic_jax.pretraining import train_step


@pytest.mark.slow
def test_the_loss_is_a_cross_entropy_over_all_other_views(tiny_config, mesh8):
  method = methods.make(as_method(tiny_config, 'simclr', temperature=0.2), 100, mesh8, jnp.dtype('float32'))
  rng = np.random.default_rng(0)
  views = jnp.asarray(rng.normal(size=(6, 2, 16, 16, 3)), jnp.float32)
  params, stats, state = jax.jit(lambda: method.init(jax.random.key(0), {'views': (views[:1],)}))()
  valid = jnp.ones(6, bool)
  loss, aux = jax.jit(method.loss)(
    params, stats, state, {'views': (views,), 'valid': valid}, jax.random.key(0))

  first_then_second = jnp.concatenate([views[:, 0], views[:, 1]])
  features, _ = jax.jit(method.network.project, static_argnums=4)(
    params, stats, first_then_second, jnp.ones(12, bool), 'batch')
  unit = F.normalize(torch.tensor(np.float64(features)))
  logits = (unit @ unit.T / 0.2).fill_diagonal_(-torch.inf)
  np.testing.assert_allclose(loss, F.cross_entropy(logits, (torch.arange(12) + 6) % 12), rtol=1e-4)
  alignment = (unit[:6] - unit[6:]).pow(2).sum(1).mean()
  np.testing.assert_allclose(aux.metrics['alignment'], alignment, rtol=1e-4)
  uniformity = torch.pdist(unit[:6]).pow(2).mul(-2).exp().mean().log()
  np.testing.assert_allclose(aux.metrics['uniformity'], uniformity, rtol=1e-4)


@pytest.mark.slow
def test_the_sum_of_both_directions_moves_batch_norm_twice_as_far_under_lars(tiny_config, mesh8):
  """LARS takes the factor out of every kernel's step; batch norm's has no trust ratio."""
  images = np.random.default_rng(0).integers(0, 256, (16, 2, 16, 16, 3), np.uint8)
  batch = {'views': (images,), 'id': np.arange(16, dtype=np.int32), 'valid': np.ones(16, bool),
           'flip': np.zeros((16, 2), bool)}
  moved = {}
  for reduction in ('mean', 'sum'):
    config = as_method(tiny_config, 'simclr', **{
      'loss.reduction': reduction, 'head.output_bias': False, 'optimizer.name': 'lars',
      'optimizer.decay_vectors': False, 'optimizer.weight_decay': 0.0})
    method = methods.make(config, 100, mesh8, jnp.dtype('float32'))
    optimizer = optim.make_optimizer(config.optimizer)
    state = train_step.init_state(method, optimizer, 0, jnp.float32)
    step = jax.jit(train_step.make_step(method, optimizer, lambda step: jnp.float32(0.1), 0, 1, jnp.float32))
    after, metrics, _ = step(state, batch)
    moved[reduction] = jax.tree.map(jnp.subtract, after.params, state.params), metrics['loss']
  (once, loss), (twice, summed) = moved['mean'], moved['sum']
  np.testing.assert_allclose(summed, 2 * loss, rtol=1e-6)
  assert set(once['head']['norm2']) == {'scale'}
  for path, change in jax.tree_util.tree_leaves_with_path(once):
    factor = 1 if change.ndim > 1 else 2
    other = functools.reduce(lambda node, key: node[key.key], path, twice)
    np.testing.assert_allclose(other, factor * change, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(('change', 'message'), [
  ({'loss.reduction': 'max'}, r"config.loss.reduction is 'max'; available: mean, sum"),
  ({'views.count': 1}, r'config.views.count is 1: SimCLR compares two views'),
  ({'temperature': 0.0}, r'config.temperature is 0.0; it must be positive')])
def test_bad_settings_are_told_before_training(tiny_config, mesh8, change, message):
  with pytest.raises(UserError, match=message):
    methods.make(as_method(tiny_config, 'simclr', **change), 100, mesh8, jnp.dtype('float32'))
