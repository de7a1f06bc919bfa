import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conic_jax.data.balanced import balanced_ids, balanced_subset
from conic_jax.data.folder import Folder
from conic_jax.errors import UserError


@settings(max_examples=30, deadline=None, derandomize=True)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=8), share=st.floats(0.01, 0.99),
       seed=st.integers(0, 2**32 - 1), unlabelled=st.integers(0, 5))
def test_each_class_gives_as_many(counts, share, seed, unlabelled):
  labels = np.repeat(np.arange(-1, len(counts)), [unlabelled, *counts]).astype(np.int32)
  np.random.default_rng(seed).shuffle(labels)
  if not sum(counts):
    with pytest.raises(UserError, match='has a label'):
      balanced_ids(labels, share, seed)
    return
  ids = balanced_ids(labels, share, seed)
  wanted = max(1, round(share * sum(counts) / np.count_nonzero(counts)))
  assert [np.sum(labels[ids] == label) for label in range(len(counts))] == [min(wanted, n) for n in counts]
  assert (np.diff(ids) > 0).all()
  np.testing.assert_array_equal(ids, balanced_ids(labels, share, seed))


def test_other_seeds_choose_other_images():
  labels = np.arange(1000) % 10
  chosen = [set(balanced_ids(labels, 0.1, seed)) for seed in (0, 1)]
  assert len(chosen[0]) == len(chosen[1]) == 100
  assert len(chosen[0] & chosen[1]) < 30


def test_the_list_is_of_the_training_split_alone(image_folder):
  train, test = Folder(str(image_folder), 'train'), Folder(str(image_folder), 'test')
  few = balanced_subset(train, 0.1, seed=3)
  assert (few.num_images, sorted(few.labels())) == (4, [0, 0, 1, 1])
  images, labels = few.read(np.arange(4))
  np.testing.assert_array_equal(labels, few.labels())
  assert len(set(images)) == 4
  assert not set(images) & set(test.read(np.arange(test.num_images))[0])
