"""AlignUniform's loss against PyTorch, with the weights of its config."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import as_method

from conic_jax import methods
from conic_jax.command_line import load
from conic_jax.memories import key_queue


@pytest.mark.slow
def test_the_loss_is_the_weighted_sum_of_both(tiny_config, mesh8):
  config = as_method(tiny_config, 'align_uniform', **{'queue.size': 30, 'queue.mask_own': False})
  method = methods.make(config, 100, mesh8, jnp.dtype('float32'))
  rng = np.random.default_rng(0)
  queries, keys = (F.normalize(torch.tensor(rng.normal(size=(6, 8)))) for _ in range(2))
  queue = key_queue.init_queue(jax.random.key(0), 30, 8, mesh8)
  valid = np.arange(6) != 2

  to_queue = (queries[valid][:, None] - torch.tensor(np.float64(queue.keys)[:30])).pow(2).sum(2).flatten()
  distances = torch.cat([to_queue, torch.pdist(queries[valid]).pow(2)])
  expected = 3 * (queries - keys).norm(dim=1)[valid].pow(2).mean() + distances.mul(-3).exp().mean().log()
  batch = {'id': jnp.arange(6, dtype=jnp.int32), 'valid': jnp.asarray(valid)}
  found, _ = method.contrast(jnp.float32(queries.numpy()), jnp.float32(keys.numpy()), queue, batch)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_weights_are_the_releases():
  weights = load('configs/align_uniform.py').align_uniform
  assert (weights.align, weights.uniform, weights.t) == (3.0, 1.0, 3.0)
