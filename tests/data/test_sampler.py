import numpy as np
import pytest

from conic_jax.data import sampler
from conic_jax.errors import UserError


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
