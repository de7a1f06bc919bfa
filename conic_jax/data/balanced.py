"""A share of the labels, the same number of each class: what semi-supervised protocols learn from."""
import numpy as np

from conic_jax.data.sources import Source, Subset
from conic_jax.errors import UserError


def balanced_subset(source: Source, share: float, seed: int) -> Subset:
  """A seeded, class-balanced share of a source's images.

  A class gives round(share·N / C) images, at least one; all that it has where they are fewer. Which ones
  depends on the seed and the class alone.

  Args:
    source: N images of C classes.
    share: of the images, above 0 and below 1.
    seed: of the choice.

  Returns:
    The images chosen, in the order of their ids.

  Raises:
    UserError: where the images have no labels.
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
