"""Blocks that are computed again for the gradients: the same network, with less kept."""
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conic_jax.models import build_encoder

FEW = {'stem': 'cifar', 'width': 1 / 4, 'blocks': (3,)}


def differentiated(name, remat):
  """Maps images to features, statistics and gradients of an encoder, and counts the bytes kept for them."""
  encoder = build_encoder(SimpleNamespace(name=name, remat=remat, **FEW), jnp.float32)
  images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
  start = jax.jit(lambda: encoder.init(jax.random.key(0), images, mode='batch'))()
  others = {name: part for name, part in start.items() if name != 'params'}

  def apply(params):
    features, updated = encoder.apply({**others, 'params': params}, images, mode='batch',
                                      mask=jnp.arange(4) != 2, mutable=['batch_stats'])
    return features, updated

  def results(params):
    features, pull_back, updated = jax.vjp(apply, params, has_aux=True)
    return features, updated, pull_back(jnp.cos(features))[0]
  pull_back = jax.eval_shape(lambda params: jax.vjp(apply, params, has_aux=True)[1], start['params'])
  kept = jax.tree.leaves(pull_back)
  return start, jax.jit(results)(start['params']), sum(leaf.size * leaf.dtype.itemsize for leaf in kept)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['resnet18', 'vit_tiny', 'convnext_tiny'])
def test_blocks_computed_again_give_the_same_numbers_and_keep_less(name):
  (start, results, kept), (same_start, same_results, kept_less) = (
    differentiated(name, remat) for remat in (False, True))
  chex.assert_trees_all_equal(same_start, start)
  for same, one in zip(*map(jax.tree.leaves, (same_results, results)), strict=True):
    # Small numbers among large ones are what is left of sums of large ones.
    np.testing.assert_allclose(same, one, rtol=1e-4, atol=1e-5 + 1e-6 * np.abs(one).max())
  assert kept_less < 2 / 3 * kept
