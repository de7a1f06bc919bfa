import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conic_jax.data import sampler
from conic_jax.errors import UserError


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2 ** 32 - 1), st.integers(0, 10_000))
def test_shuffled_is_a_bijection(num_images, seed, epoch):
  ids = sampler.shuffled(np.arange(num_images), num_images, seed, epoch)
  assert ids.dtype == np.int64
  np.testing.assert_array_equal(np.sort(ids), np.arange(num_images))


def test_shuffled_depends_on_seed_and_epoch():
  orders = [sampler.shuffled(np.arange(1000), 1000, seed, epoch)
            for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
  for i, first in enumerate(orders):
    for second in orders[:i]:
      assert np.mean(first == second) < 0.02


@pytest.mark.parametrize('num_images', [2 ** 31, 2 ** 31 - 1, 10 ** 9 + 7])
def test_shuffled_of_billions_holds_no_array_of_them(num_images):
  positions = np.concatenate([np.arange(5000), num_images - 1 - np.arange(5000)])
  ids = sampler.shuffled(positions, num_images, 3, 7)
  assert len(np.unique(ids)) == len(positions)
  assert ids.min() >= 0
  assert ids.max() < num_images
  assert abs(ids.mean() / num_images - 0.5) < 0.02


@pytest.mark.parametrize('num_images', [64, 1000, 1281])
def test_each_position_is_uniform_over_ids(num_images):
  # One position over many epochs is a fair draw: chi-square of 8 bins, 7 degrees of freedom.
  epochs = 4000
  ids = np.array([sampler.shuffled(np.array([0, num_images // 2]), num_images, 11, epoch)
                  for epoch in range(epochs)])
  for column in ids.T:
    counts = np.bincount(column * 8 // num_images, minlength=8)
    sizes = np.bincount(np.arange(num_images) * 8 // num_images, minlength=8)
    expected = epochs * sizes / num_images
    assert np.sum((counts - expected) ** 2 / expected) < 30


def test_neighbours_in_position_are_not_neighbours_in_id():
  ids = sampler.shuffled(np.arange(10_000), 10_000, 0, 0)
  assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < 0.05


def test_an_epoch_has_every_image_once_and_drops_others_each_time():
  num_images, batch_size = 103, 10
  steps = sampler.steps_per_epoch(num_images, batch_size)
  assert steps == 10
  dropped = []
  for epoch in range(5):
    ids = np.concatenate([sampler.batch_ids(1, epoch * steps + step, num_images, batch_size)
                          for step in range(steps)])
    assert len(np.unique(ids)) == steps * batch_size
    dropped.append(frozenset(range(num_images)) - frozenset(ids.tolist()))
  assert len(set(dropped)) > 1
  assert all(len(ids) == 3 for ids in dropped)


def test_too_few_images_is_told():
  with pytest.raises(UserError, match=r'has 7 images.* batch of 8.*batch_size'):
    sampler.steps_per_epoch(7, 8)
  assert sampler.steps_per_epoch(8, 8) == 1
