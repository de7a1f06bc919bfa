"""The images of each batch, as a pure function of (seed, step); no array of all images is held."""
import dataclasses

import numpy as np

from conic_jax.errors import UserError
from conic_jax.permutation import shuffled

# No round has this number: the ring's shuffle is none of theirs.
_RING = 2**32 - 3


def steps_per_epoch(num_images: int, batch_size: int) -> int:
  """Number of full batches in an epoch; the last short one is dropped.

  Raises:
    UserError: if there are fewer images than one batch holds.
  """
  if num_images < batch_size:
    raise UserError(f'The data set has {num_images} images, fewer than one batch of {batch_size}: '
                    f'set config.batch_size to at most {num_images}, or use a larger split.')
  return num_images // batch_size


@dataclasses.dataclass(frozen=True)
class Sampler:
  """The batches of a run, in rounds that visit each image at most once.

  A round is either an epoch, which visits every image in a new order, or a sliding window. For windows, all
  images are placed on a ring in shuffled order, and round r visits, in a new order, the positions
  rS … rS + W − 1 (mod N): a share 1 − S/W of them was in the previous round, and an image comes back after
  W images instead of N, in W/S rounds out of every N/S. The ring is shuffled only once. The last short batch
  of a round is dropped; the dropped images change from round to round. The round number seeds the random
  draws of the views.

  Attributes:
    num_images: N.
    batch_size: images in the global batch.
    seed: seed of the run, non-negative.
    window: W; if it is 0 or at least N, every round covers all images.
    stride: S, in 1 … W if there is a window.

  Raises:
    UserError: if a round is smaller than a batch, or the stride would skip images.

  Source: PIC (Cao et al., 2020), the sliding-window data scheduler.
  """
  num_images: int
  batch_size: int
  seed: int
  window: int = 0
  stride: int = 0

  def __post_init__(self):
    steps_per_epoch(self.num_images, self.batch_size)
    if self.window and self.window < self.batch_size:
      raise UserError(f'config.sampler.window is {self.window}, less than one batch of {self.batch_size} '
                      'images: set it to some batches, or to 0 for every image once an epoch.')
    if self.window and not 1 <= self.stride <= self.window:
      raise UserError(f'config.sampler.stride is {self.stride}: a window moves on by at least 1 image and at '
                      f'most config.sampler.window, {self.window}, an eighth of it being usual.')

  @property
  def slides(self) -> bool:
    """Whether each round covers a window of the images rather than all of them."""
    return 0 < self.window < self.num_images

  @property
  def notice(self) -> str:
    """Notice that the configured window has no effect; '' otherwise."""
    if not self.window or self.slides:
      return ''
    return (f'config.sampler.window is {self.window} and there are {self.num_images} images: every image is '
            'seen once an epoch')

  @property
  def steps_per_epoch(self) -> int:
    """Steps that process N images: the unit of schedules, reports and checkpoints."""
    return steps_per_epoch(self.num_images, self.batch_size)

  @property
  def steps_per_round(self) -> int:
    """Number of full batches in a round."""
    return (self.window if self.slides else self.num_images) // self.batch_size

  def batch_ids(self, step: int) -> np.ndarray:
    """Image ids of a step's global batch: int64 [batch_size], the same on every host."""
    round_number, step_of_round = divmod(step, self.steps_per_round)
    positions = step_of_round * self.batch_size + np.arange(self.batch_size)
    if not self.slides:
      return shuffled(positions, self.num_images, self.seed, round_number)
    places = round_number * self.stride + shuffled(positions, self.window, self.seed, round_number)
    return shuffled(places % self.num_images, self.num_images, self.seed, _RING)
