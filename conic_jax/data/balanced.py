"""A class-balanced subset of the labelled images, for semi-supervised protocols."""
import numpy as np

from conic_jax.data.sources import Source, Subset
from conic_jax.errors import UserError


def balanced_subset(source: Source, share: float, seed: int) -> Subset:
  """Draws a seeded, class-balanced subset of a source's images.

  Each class contributes round(share·N / C) images, at least one, or all its images if it has fewer. The draw
  depends only on the seed and the class.

  Args:
    source: N images of C classes.
    share: share of the images, above 0 and below 1.
    seed: seed of the draw.

  Returns:
    The chosen images, in order of their ids.

  Raises:
    UserError: if no image has a label.
  """
  return Subset(source, balanced_ids(source.labels(), share, seed))


def balanced_ids(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
  """The ids that `balanced_subset` takes, ascending, int64 [n]; labels int32 [N], -1 for none."""
  classes = np.unique(labels[labels >= 0])
  if not len(classes):
    raise UserError('None of the training images has a label: give a source with classes, such as a folder '
                    'with one subfolder a class.')
  wanted = max(1, round(share * np.sum(labels >= 0) / len(classes)))
  chosen = [np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label))[:wanted]
            for label in classes]
  return np.sort(np.concatenate(chosen))
