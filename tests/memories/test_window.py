"""The window against a simulation that sorts everything, and what it refuses."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conic_jax.errors import UserError
from conic_jax.memories.window import NEVER_RENEWED, WindowClasses, first_classes


def naive_advance(classes, renewed, step, ids):
  """The rule, word by word, on lists."""
  batch = list(dict.fromkeys(ids))
  for slot, name in enumerate(classes):
    if name in batch:
      renewed[slot] = step
  oldest = sorted((slot for slot, name in enumerate(classes) if name not in batch),
                  key=lambda slot: (renewed[slot], slot))
  entering = [name for name in batch if name not in classes]
  swaps = []
  for slot, name in zip(oldest, entering):
    swaps.append((slot, classes[slot], name))
    classes[slot], renewed[slot] = name, step
  return [classes.index(name) for name in ids], swaps


@st.composite
def runs(draw):
  num_instances = draw(st.integers(4, 40))
  batch_size = draw(st.integers(1, 8))
  num_slots = draw(st.integers(min(batch_size, num_instances), num_instances))
  batch = st.lists(st.integers(0, num_instances - 1), min_size=batch_size, max_size=batch_size)
  batches = draw(st.lists(batch.filter(lambda ids: len(set(ids)) <= num_slots), max_size=12))
  return num_instances, num_slots, batches


def test_the_oldest_of_a_large_window_leave():
  """In a window this large the oldest are found without sorting all; one that is not rarely comes first."""
  rng = np.random.default_rng(0)
  for count in range(1, 2000, 3):
    renewed = rng.permutation(2000)
    window = WindowClasses(np.arange(2000), renewed, 4000)
    swaps = window.advance(2000, np.arange(2000, 2000 + count))
    np.testing.assert_array_equal(swaps.leaving, np.argsort(renewed)[:count])


def check_against_naive(classes, renewed, num_instances, batches):
  """The steps of these batches, after those in which the slots were renewed."""
  window = WindowClasses(classes, renewed, num_instances)
  classes, renewed = classes.tolist(), renewed.tolist()
  for step, ids in enumerate(batches, max(renewed) + 1):
    swaps = window.advance(step, np.array(ids))
    slots, expected = naive_advance(classes, renewed, step, ids)
    assert swaps.slots.tolist() == slots
    assert list(zip(swaps.swapped.tolist(), swaps.leaving.tolist(), swaps.entering.tolist())) == expected
    assert (window.classes.tolist(), window.renewed.tolist()) == (classes, renewed)


@given(runs(), st.integers(0, 2**32 - 1))
def test_every_step_is_the_naive_one(run, seed):
  num_instances, num_slots, batches = run
  classes = first_classes(num_slots, num_instances, seed, batch_size=1)
  check_against_naive(classes, np.full(num_slots, NEVER_RENEWED), num_instances, batches)


def test_a_large_window_of_any_ages_is_the_naive_one():
  rng = np.random.default_rng(0)
  check_against_naive(rng.permutation(40_000)[:3000], rng.integers(0, 50, 3000), 40_000,
                      rng.integers(0, 40_000, (3, 400)).tolist())


def test_a_window_goes_on_from_its_arrays():
  rng = np.random.default_rng(0)
  batches = rng.integers(0, 50, (20, 6))
  whole = WindowClasses(first_classes(20, 50, 3, 6), np.full(20, NEVER_RENEWED), 50)
  for step in range(10):
    whole.advance(step, batches[step])
  resumed = WindowClasses(whole.classes.astype(np.int32), whole.renewed.astype(np.int32), 50)
  for step in range(10, 20):
    for mine, other in zip(resumed.advance(step, batches[step]), whole.advance(step, batches[step])):
      np.testing.assert_array_equal(mine, other)


def test_the_first_window_is_a_sample_that_the_seed_decides():
  classes = first_classes(30, 50, 1, 8)
  assert len(set(classes.tolist())) == 30
  assert classes.min() >= 0
  assert classes.max() < 50
  np.testing.assert_array_equal(classes, first_classes(30, 50, 1, 8))
  assert not np.array_equal(classes, first_classes(30, 50, 2, 8))
  assert sorted(first_classes(50, 50, 1, 8)) == list(range(50))


def test_a_window_smaller_than_the_batch_is_refused():
  with pytest.raises(UserError, match=r'config\.classifier\.window is 7, .* 8 images'):
    first_classes(7, 100, 0, batch_size=8)


@pytest.mark.parametrize('wrong', [-1, 50])
def test_ids_out_of_range_are_refused(wrong):
  window = WindowClasses(first_classes(20, 50, 3, 6), np.full(20, NEVER_RENEWED), 50)
  with pytest.raises(UserError, match=rf'step 4 holds id {wrong}, outside 0 … 49'):
    window.advance(4, np.array([1, wrong, 2]))
