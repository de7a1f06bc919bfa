"""The loss of a network that tells no image from another, as methods name it."""
import math

import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_method

from conic_jax import losses, methods

N, BATCH = 40, 16
EXPECTED = {
  'conic': ('loss_instance', math.log(N)), 'exemplar': ('loss_instance', math.log(N)),
  'conic_s': ('loss_instance', math.log(N)), 'pic': ('loss_instance', math.log(24)),
  'one_million': ('loss_instance', math.log(N)), 'data_parallel': ('loss_instance', math.log(N)),
  'simclr': ('loss', math.log(2 * BATCH - 1)), 'moco': ('loss', math.log(38)),
  'co2': ('loss_contrast', math.log(38)), 'inscon': ('loss_single', math.log(38)),
  'instdisc': None, 'byol': None, 'align_uniform': None}


@pytest.mark.parametrize('name', methods.available())
def test_chance_is_the_loss_over_equal_scores(tiny_config, mesh8, name):
  config = tiny_method(tiny_config, name)
  found = methods.make(config, N, mesh8, jnp.dtype(jnp.float32)).chance
  if EXPECTED[name] is None:
    assert found is None
  else:
    assert found == (EXPECTED[name][0], pytest.approx(EXPECTED[name][1]))


def test_instdisc_counts_its_bank(tiny_config, mesh8):
  config = tiny_method(tiny_config, 'instdisc', **{'loss.name': 'full'})
  found = methods.make(config, N, mesh8, jnp.dtype(jnp.float32)).chance
  assert found == ('loss', pytest.approx(math.log(N)))


@pytest.mark.slow
def test_the_losses_of_equal_features_are_at_chance():
  views, valid = np.ones((BATCH, 2, 8), np.float32), np.ones(BATCH, bool)
  np.testing.assert_allclose(losses.nt_xent(views, valid, 0.1), math.log(2 * BATCH - 1), rtol=1e-5)
  np.testing.assert_allclose(losses.contrast(np.ones((BATCH, 1)), np.ones((BATCH, 1, 37))), math.log(38),
                             rtol=1e-5)
