"""Which images make up a batch: a pure function of (seed, step) that holds no array of them all."""
import numpy as np

from conic_jax.errors import UserError
from conic_jax.permutation import shuffled


def steps_per_epoch(num_images: int, batch_size: int) -> int:
  """Number of full batches in an epoch; the short one at the end is dropped.

  Raises:
    UserError: where there are fewer images than one batch holds.
  """
  if num_images < batch_size:
    raise UserError(f'The data set has {num_images} images, fewer than one batch of {batch_size}: '
                    f'set config.batch_size to at most {num_images}, or use a larger split.')
  return num_images // batch_size


def batch_ids(seed: int, step: int, num_images: int, batch_size: int) -> np.ndarray:
  """Ids of the global batch of a step.

  Each epoch visits every image at most once; the N mod batch_size images that are left out are
  other ones in every epoch.

  Returns:
    Ids, int64 [batch_size], the same on every host.

  Raises:
    UserError: where there are fewer images than one batch holds.
  """
  epoch, step_of_epoch = divmod(step, steps_per_epoch(num_images, batch_size))
  positions = step_of_epoch * batch_size + np.arange(batch_size)
  return shuffled(positions, num_images, seed, epoch)
