"""The NCE loss, its gradient and its constant against the formulas in float64, on one device and on eight."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conic_jax.hardware import mesh as meshes
from conic_jax.losses import nce as nce_lib
from conic_jax.losses.nce import NceSettings, draw_noise, nce
from conic_jax.memories.bank import init_bank

NUM_INSTANCES, PADDED, DIM, BATCH, SAMPLES, TEMPERATURE = 43, 64, 6, 16, 21, 0.2
KEY = jax.random.key(7)


def problem():
  """A bank whose padding is no number, features, ids and which of them are valid."""
  rng = np.random.default_rng(0)
  bank = rng.uniform(-0.7, 0.7, (PADDED, DIM)).astype(np.float32)
  bank[NUM_INSTANCES:] = np.nan
  features = rng.normal(size=(BATCH, DIM))
  features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
  ids = rng.permutation(NUM_INSTANCES)[:BATCH].astype(np.int32)
  return bank, features, ids, np.arange(BATCH) != 3


def by_hand(bank, features, ids, valid, drawn, normaliser):
  """J of each image, its gradient and Z, written from the formulas."""
  bank, features = np.float64(bank), np.float64(features)
  masses = np.exp(np.einsum('bd,bkd->bk', features, bank[np.column_stack([ids, drawn])]) / TEMPERATURE)
  if normaliser == 0:
    normaliser = NUM_INSTANCES * masses[valid].mean()
  p = masses / normaliser
  h = p / (p + SAMPLES / NUM_INSTANCES)
  loss = -np.log(h[:, 0]) - np.log(1 - h[:, 1:]).sum(axis=1)
  pull = np.einsum('bk,bkd->bd', h[:, 1:], bank[drawn]) - (1 - h[:, :1]) * bank[ids]
  return loss, pull / TEMPERATURE, normaliser


# Blocks of which the last is not full, and one block.
@pytest.mark.slow
@pytest.mark.parametrize(('block', 'normaliser'), [(8, 0.0), (SAMPLES, 55.0)])
def test_loss_gradient_and_constant(mesh, monkeypatch, block, normaliser):
  monkeypatch.setattr(nce_lib, '_BLOCK_NUMBERS', block * BATCH * DIM)
  noise = NceSettings(NUM_INSTANCES, SAMPLES, TEMPERATURE, mesh)
  drawn = np.asarray(draw_noise(KEY, BATCH, noise))
  weights = np.random.default_rng(1).normal(size=BATCH).astype(np.float32)

  @jax.jit
  def ours(features, bank, ids, valid):
    def total(features, bank):
      scores = nce(bank, features, ids, valid, jnp.float32(normaliser), KEY, noise)
      return jnp.sum(scores.loss * weights), scores
    gradients, scores = jax.grad(total, argnums=(0, 1), has_aux=True)(features, bank)
    return scores, gradients

  arrays = problem()
  split = meshes.to_global(dict(zip(('bank', 'features', 'ids', 'valid'), arrays, strict=True)), mesh)
  scores, (gradient, bank_gradient) = ours(**split)
  loss, pull, constant = by_hand(*arrays, drawn, normaliser)
  np.testing.assert_allclose(scores.loss, loss, rtol=1e-5)
  np.testing.assert_allclose(gradient, pull * weights[:, None], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(scores.normaliser, constant, rtol=1e-5)
  np.testing.assert_array_equal(bank_gradient, 0)


def test_noise_is_uniform_with_replacement_and_new_for_each_key():
  noise = NceSettings(10, 4000, TEMPERATURE, meshes.make_mesh())
  first, second = (np.asarray(draw_noise(jax.random.key(seed), 8, noise)) for seed in (0, 1))
  assert first.shape == (8, 4000)
  assert np.any(first != second)
  assert np.any(first[0] != first[1])
  # Binomial of 32,000: mean 3,200, standard deviation 54.
  assert np.abs(np.bincount(first.ravel(), minlength=10) - 3200).max() < 5 * 54


def test_the_bank_starts_uniform_and_is_the_same_for_any_padding():
  bank = np.asarray(init_bank(KEY, 300, 48))
  assert np.abs(bank).max() <= 0.25
  np.testing.assert_allclose(bank.mean(), 0, atol=0.01)
  np.testing.assert_allclose(np.square(bank).sum(axis=1).mean(), 1, rtol=0.02)
  np.testing.assert_array_equal(init_bank(KEY, 200, 48), bank[:200])
