import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conic_jax.data.sampler import Sampler, steps_per_epoch
from conic_jax.errors import UserError
from conic_jax.permutation import shuffled


def ids_of_round(sampler, number):
  """The ids of a round, in the order of its batches."""
  steps = sampler.steps_per_round
  return np.concatenate([sampler.batch_ids(number * steps + step) for step in range(steps)])


def test_an_epoch_has_every_image_once_and_drops_others_each_time():
  sampler = Sampler(num_images=103, batch_size=10, seed=1)
  assert sampler.steps_per_epoch == sampler.steps_per_round == 10
  dropped = []
  for epoch in range(5):
    ids = ids_of_round(sampler, epoch)
    assert len(np.unique(ids)) == 100
    dropped.append(frozenset(range(103)) - frozenset(ids.tolist()))
  assert len(set(dropped)) > 1
  assert all(len(ids) == 3 for ids in dropped)


@pytest.mark.parametrize('window', [0, 103, 1000])
def test_without_a_window_below_n_a_batch_is_a_stretch_of_the_shuffled_epoch(window):
  sampler = Sampler(103, 10, seed=7, window=window, stride=5)
  for epoch, step in ((0, 0), (0, 9), (3, 4)):
    wanted = shuffled(np.arange(step * 10, step * 10 + 10), 103, 7, epoch)
    np.testing.assert_array_equal(sampler.batch_ids(epoch * 10 + step), wanted)
  assert not sampler.slides
  assert sampler.notice.startswith(f'config.sampler.window is {window} and there are 103') == (window > 0)


@settings(max_examples=20, deadline=None)
@given(num_images=st.integers(12, 80), data=st.data())
def test_windows_slide_over_one_ring(num_images, data):
  """Against lists: the ring is read off windows of one batch that move on by their own length."""
  batch_size = data.draw(st.integers(1, 6))
  window = data.draw(st.integers(batch_size, num_images - 1))
  stride = data.draw(st.integers(1, window))
  seed = data.draw(st.integers(0, 2**32 - 1))
  single = Sampler(num_images, 1, seed, window=1, stride=1)
  ring = [int(single.batch_ids(step)[0]) for step in range(num_images)]
  assert sorted(ring) == list(range(num_images))

  sampler = Sampler(num_images, batch_size, seed, window=window, stride=stride)
  assert sampler.steps_per_round == window // batch_size
  for number in (0, 1, 2, 7, 50):
    places = [(number * stride + place) % num_images for place in range(window)]
    ids = ids_of_round(sampler, number).tolist()
    assert len(ids) == len(set(ids)) == window // batch_size * batch_size
    assert set(ids) <= {ring[place] for place in places}


def test_neighbouring_windows_share_seven_eighths_in_another_order():
  """PIC's ratio of window and stride; each image is in W/S of every N/S windows."""
  sampler = Sampler(num_images=160, batch_size=16, seed=3, window=64, stride=8)
  rounds = [ids_of_round(sampler, number) for number in range(20)]
  for one, other in zip(rounds, rounds[1:] + rounds[:1]):
    assert len(set(one.tolist()) & set(other.tolist())) == 56
  np.testing.assert_array_equal(np.bincount(np.concatenate(rounds), minlength=160), 8)
  again = ids_of_round(sampler, 20)
  assert set(again.tolist()) == set(rounds[0].tolist())
  assert not np.array_equal(again, rounds[0])
  assert not np.array_equal(np.sort(rounds[0]), np.arange(64))


@pytest.mark.parametrize('seed', [0, 7])
def test_the_ring_has_an_order_of_its_own(seed):
  """No round shuffles as the ring does: its images would follow one another as they lie there."""
  ring = Sampler(num_images=40, batch_size=1, seed=seed, window=1, stride=1)
  order = [int(ring.batch_ids(place)[0]) for place in range(40)]
  for number in range(1000):
    assert shuffled(np.arange(40), 40, seed, number).tolist() != order


def test_windows_and_epochs_are_counted_apart():
  sampler = Sampler(num_images=103, batch_size=10, seed=0, window=25, stride=5)
  assert (sampler.steps_per_epoch, sampler.steps_per_round, sampler.notice) == (10, 2, '')


@pytest.mark.parametrize(('settings', 'answer'), [
  ({'num_images': 7}, r'has 7 images.* batch of 8.*batch_size'),
  ({'window': 7, 'stride': 1}, r'sampler\.window is 7, less than one batch of 8'),
  ({'window': 16}, r'sampler\.stride is 0.*at most config\.sampler\.window, 16'),
  ({'window': 16, 'stride': 17}, r'sampler\.stride is 17')])
def test_settings_that_no_run_can_have_are_told(settings, answer):
  with pytest.raises(UserError, match=answer):
    Sampler(**{'num_images': 40, 'batch_size': 8, 'seed': 0, **settings})
  assert steps_per_epoch(8, 8) == 1
