"""The shuffle is a bijection, new for each seed and epoch, without structure."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conic_jax import permutation


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2 ** 32 - 1), st.integers(0, 10_000))
def test_shuffled_is_a_bijection(num_images, seed, epoch):
  ids = permutation.shuffled(np.arange(num_images), num_images, seed, epoch)
  assert ids.dtype == np.int64
  np.testing.assert_array_equal(np.sort(ids), np.arange(num_images))


def test_the_orders_of_older_runs_stay():
  assert permutation.shuffled(np.arange(10), 10, 3, 7).tolist() == [7, 5, 1, 8, 3, 2, 4, 0, 6, 9]


@pytest.mark.parametrize('num_images', [1, 10, 1281])
def test_numpy_and_jax_permute_alike(num_images):
  keys = np.arange(permutation.HALF_ROUNDS, dtype=np.uint32) * np.uint32(0x9e3779b1)
  values = np.arange(num_images, dtype=np.int32)
  expected = permutation.permuted(values, num_images, keys)
  assert len(set(expected.tolist())) == num_images
  jitted = jax.jit(permutation.permuted, static_argnums=1)
  permuted = jitted(jnp.asarray(values), num_images, jnp.asarray(keys))
  np.testing.assert_array_equal(permuted, expected)
  assert permuted.dtype == jnp.int32


def test_shuffled_depends_on_seed_and_epoch():
  orders = [permutation.shuffled(np.arange(1000), 1000, seed, epoch)
            for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
  for i, first in enumerate(orders):
    for second in orders[:i]:
      assert np.mean(first == second) < 0.02


@pytest.mark.parametrize('num_images', [2 ** 31, 2 ** 31 - 1, 10 ** 9 + 7])
def test_shuffled_of_billions_holds_no_array_of_them(num_images):
  positions = np.concatenate([np.arange(5000), num_images - 1 - np.arange(5000)])
  ids = permutation.shuffled(positions, num_images, 3, 7)
  assert len(np.unique(ids)) == len(positions)
  assert ids.min() >= 0
  assert ids.max() < num_images
  assert abs(ids.mean() / num_images - 0.5) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize('num_images', [64, 1000, 1281])
def test_each_position_is_uniform_over_ids(num_images):
  # One position over many epochs is a fair draw: chi-square of 8 bins, 7 degrees of freedom.
  epochs = 4000
  ids = np.array([permutation.shuffled(np.array([0, num_images // 2]), num_images, 11, epoch)
                  for epoch in range(epochs)])
  for column in ids.T:
    counts = np.bincount(column * 8 // num_images, minlength=8)
    sizes = np.bincount(np.arange(num_images) * 8 // num_images, minlength=8)
    expected = epochs * sizes / num_images
    assert np.sum((counts - expected) ** 2 / expected) < 30


def test_neighbours_in_position_are_not_neighbours_in_id():
  ids = permutation.shuffled(np.arange(10_000), 10_000, 0, 0)
  assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < 0.05
