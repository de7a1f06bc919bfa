"""Which classes are in the sampled softmax's window: a function of the batches' ids alone.

The host runs it ahead of the device, so that it knows early which rows enter and leave in a step.
"""
from typing import NamedTuple

import chex
import numpy as np

from conic_jax.errors import UserError
from conic_jax.permutation import shuffled

# No epoch has this number, so the first window's shuffle differs from every epoch's.
_FIRST_WINDOW = 2**32 - 1
NEVER_RENEWED = -1


class Swaps(NamedTuple):
  """How a batch of B images changes the window.

  Attributes:
    slots: int64 [B], the slot of each image's class from now on.
    swapped: int64 [k], the slots whose class changes, k ≤ B.
    leaving, entering: int64 [k], the classes in these slots before and after.
  """
  slots: np.ndarray
  swapped: np.ndarray
  leaving: np.ndarray
  entering: np.ndarray


def check(num_slots: int, batch_size: int) -> None:
  """Raises a `UserError` if the window cannot hold a batch."""
  if num_slots < batch_size:
    raise UserError(f'config.classifier.window is {num_slots}, less than the batch of {batch_size} images, '
                    f'whose classes are all in it: set it to at least {batch_size}, 65536 being usual.')


def first_classes(num_slots: int, num_instances: int, seed: int, batch_size: int) -> np.ndarray:
  """Classes of the first window, by slot: sampled without replacement, a function of the seed.

  Args:
    num_slots: N′, at most N.
    num_instances: N.
    seed: the run's seed.
    batch_size: images in a batch.

  Returns:
    int64 [N′].

  Raises:
    UserError: as `check`.
  """
  check(num_slots, batch_size)
  return shuffled(np.arange(num_slots), num_instances, seed, _FIRST_WINDOW)


class WindowClasses:
  """The class in each slot. In each step, the batch's classes outside the window replace the oldest ones.

  The oldest classes are those whose last batch is longest ago; among equals, the one in the lower slot goes
  first. A class of the batch that is already in the window keeps its slot and becomes the newest.
  """

  def __init__(self, classes: np.ndarray, renewed: np.ndarray, num_instances: int):
    """Starts with these classes.

    Args:
      classes: int [N′], the class in each slot.
      renewed: int [N′], the step in which each was last in a batch, or `NEVER_RENEWED`.
      num_instances: N.
    """
    chex.assert_rank(classes, 1)
    chex.assert_equal_shape([classes, renewed])
    self.classes = classes.astype(np.int64)
    self._num_instances = num_instances
    self._slot_of = {name: slot for slot, name in enumerate(self.classes.tolist())}
    # One number that sorts by age, then by slot.
    self._age = renewed.astype(np.int64) * len(classes) + np.arange(len(classes))

  @property
  def renewed(self) -> np.ndarray:
    """The step in which each slot's class was last in a batch, or `NEVER_RENEWED`: int64 [N′]."""
    return self._age // len(self._age)

  def advance(self, step: int, ids: np.ndarray) -> Swaps:
    """Moves the window on by the batch of a step.

    Args:
      step: the step; must be larger than the previous one.
      ids: int [B], the batch's classes; they may repeat.

    Raises:
      UserError: if an id is outside [0, N).
    """
    chex.assert_rank(ids, 1)
    if len(outside := ids[(ids < 0) | (ids >= self._num_instances)]):
      raise UserError(f'The batch of step {step} holds id {outside[0]}, outside 0 … '
                      f'{self._num_instances - 1}: set config.num_instances to the images of the data set.')
    batch = list(dict.fromkeys(ids.tolist()))
    inside = np.array([self._slot_of[name] for name in batch if name in self._slot_of], np.int64)
    self._renew(inside, step)
    entering = np.array([name for name in batch if name not in self._slot_of], np.int64)
    swapped = self._oldest(len(entering))
    leaving = self.classes[swapped]
    for name in leaving.tolist():
      del self._slot_of[name]
    self._slot_of.update(zip(entering.tolist(), swapped.tolist()))
    self.classes[swapped] = entering
    self._renew(swapped, step)
    slots = np.array([self._slot_of[name] for name in ids.tolist()], np.int64)
    return Swaps(slots, swapped, leaving, entering)

  def _oldest(self, count: int) -> np.ndarray:
    """Slots of the `count` oldest classes, oldest first."""
    if count == 0:
      return np.empty(0, np.int64)
    oldest = np.argpartition(self._age, count - 1)[:count]
    return oldest[np.argsort(self._age[oldest])]

  def _renew(self, slots: np.ndarray, step: int) -> None:
    self._age[slots] = step * len(self._age) + slots
