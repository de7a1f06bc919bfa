"""MoCo and CO2 against PyTorch, and what their settings must allow."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from methods.torch_moco import MoCo, leaves, to_torch
from support import as_method

from conic_jax import methods, optim
from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.pretraining import train_step

BATCH, QUEUE, GROUPS, LR = 16, 40, 4, 0.03


def batch_of(step):
  rng = np.random.default_rng(step)
  return {'views': (rng.integers(0, 256, (BATCH, 2, 16, 16, 3), np.uint8),),
          'id': np.arange(BATCH, dtype=np.int32), 'valid': np.ones(BATCH, bool),
          'crop': np.tile(np.float32([0, 0, 1, 1]), (BATCH, 2, 1)), 'flip': rng.random((BATCH, 2)) < 0.5}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['moco', 'co2'])
def test_three_steps_equal_pytorch(tiny_config, name):
  """The queue wraps around in the third."""
  own = {'head.norm': False, 'queue.size': QUEUE, 'queue.mask_own': False, 'batch_norm.groups': GROUPS,
         'temperature': 0.2, 'momentum.start': 0.9, **({'consistency.alpha': 3.0} if name == 'co2' else {})}
  config = as_method(tiny_config, name, **own)
  method = methods.make(config, 100, meshes.make_mesh(devices=jax.devices()[:1]), jnp.dtype('float32'))
  sgd = config.optimizer
  optimizer = optim.make_optimizer(sgd)
  state = jax.jit(lambda: train_step.init_state(method, optimizer, 0, jnp.dtype('float32')))()
  peer = MoCo(jax.device_get(state.params), jax.device_get(state.batch_stats),
              np.asarray(state.memories['queue'].keys)[:QUEUE], groups=GROUPS, temperature=0.2,
              momentum=0.9, lr=LR, sgd_momentum=sgd.momentum, weight_decay=sgd.weight_decay,
              alpha=3.0 if name == 'co2' else 0.0, consistency_temperature=0.05)
  augment = jax.jit(lambda batch: train_step.augment_batch(method.views, batch, 0, jnp.int32(0))['views'][0])
  step_fn = jax.jit(
    train_step.make_step(method, optimizer, lambda step: jnp.float32(LR), 0, 10, jnp.dtype('float32')))
  for step in range(3):
    batch = batch_of(step)
    images = torch.tensor(np.asarray(augment(batch), np.float64).transpose(1, 0, 4, 2, 3))
    members = method.members(jax.random.fold_in(state.rng, step), BATCH)
    loss = peer.step(*images, torch.tensor(np.argsort(members, stable=True)))
    state, metrics, _ = step_fn(state, batch)
    np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-4)

  peer.average()  # Which MoCo does when the next step starts.
  key = state.memories['key']
  for ours, theirs in ((state.params, peer.query.params), (state.batch_stats, peer.query.stats),
                       (key['params'], peer.key.params), (key['batch_stats'], peer.key.stats)):
    ours = leaves(to_torch(jax.device_get(ours)))
    for (path, leaf), (same_path, other) in zip(ours, leaves(theirs), strict=True):
      assert path == same_path
      np.testing.assert_allclose(leaf, other.detach(), rtol=1e-3, atol=2e-5, err_msg='/'.join(path))
  queue = state.memories['queue']
  np.testing.assert_allclose(queue.keys[:QUEUE], peer.queue, atol=1e-4)
  assert int(queue.position) == peer.pointer


@pytest.mark.parametrize(('change', 'message'), [
  ({'queue.size': 15}, r'config.queue.size is 15, smaller than the 16 keys of a batch: set it to at least'),
  ({'batch_norm.groups': 5}, r'config.batch_norm.groups 5 does not divide config.batch_size 16'),
  ({'views.count': 3}, r'config.views.count is 3: moco takes two views'),
])
def test_bad_settings_are_told_before_training(tiny_config, mesh8, change, message):
  with pytest.raises(UserError, match=message):
    methods.make(as_method(tiny_config, 'moco', **change), 100, mesh8, jnp.dtype('float32'))


def test_keys_are_shuffled_over_equal_groups_anew_in_every_step(tiny_config, mesh8):
  config = as_method(tiny_config, 'moco', **{'batch_norm.groups': 4})
  method = methods.make(config, 100, mesh8, jnp.dtype('float32'))
  groups = [np.asarray(method.members(jax.random.key(step), 16)) for step in range(2)]
  assert all((np.bincount(members) == 4).all() for members in groups)
  assert (groups[0] != groups[1]).any()
  assert (groups[0] != np.arange(16) // 4).any()
