"""SimCLR's loss from plain passes, against PyTorch's cross entropy."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import as_method

from conic_jax import methods
from conic_jax.errors import UserError


def test_the_loss_is_a_cross_entropy_over_all_other_views(tiny_config, mesh8):
  method = methods.make(as_method(tiny_config, 'simclr', temperature=0.2), 100, mesh8, jnp.dtype('float32'))
  rng = np.random.default_rng(0)
  views = jnp.asarray(rng.normal(size=(6, 2, 16, 16, 3)), jnp.float32)
  params, stats, state = jax.jit(lambda: method.init(jax.random.key(0), {'views': (views[:1],)}))()
  valid = jnp.ones(6, bool)
  loss, _ = jax.jit(method.loss)(params, stats, state, {'views': (views,), 'valid': valid}, jax.random.key(0))

  first_then_second = jnp.concatenate([views[:, 0], views[:, 1]])
  features, _ = jax.jit(method.network.project, static_argnums=4)(
    params, stats, first_then_second, jnp.ones(12, bool), 'batch')
  unit = F.normalize(torch.tensor(np.float64(features)))
  logits = (unit @ unit.T / 0.2).fill_diagonal_(-torch.inf)
  np.testing.assert_allclose(loss, F.cross_entropy(logits, (torch.arange(12) + 6) % 12), rtol=1e-4)


@pytest.mark.parametrize(('change', 'message'), [
  ({'views.count': 1}, r'config.views.count is 1: SimCLR compares two views'),
  ({'temperature': 0.0}, r'config.temperature is 0.0: it is above 0')])
def test_bad_settings_are_told_before_training(tiny_config, mesh8, change, message):
  with pytest.raises(UserError, match=message):
    methods.make(as_method(tiny_config, 'simclr', **change), 100, mesh8, jnp.dtype('float32'))
