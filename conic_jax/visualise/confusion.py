"""Picture of a confusion matrix."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from conic_jax.errors import UserError
from conic_jax.visualise.style import drawing, save, shown_name

_LISTED_CLASSES, _LISTED_PAIRS, _MOST_CELLS = 20, 15, 250


def confusion_picture(confusion: np.ndarray, class_names: Sequence[str], out: Path) -> None:
  """Draws a confusion matrix as shares of each true class.

  Up to 20 classes are named, with counts in the cells; for more, the 15 most frequent confusions are listed.
  Beyond 250 classes a cell covers several classes and shows their largest share.

  Args:
    confusion: number of images by true and predicted class, integers [C, C].
    class_names: names of the classes.
    out: file to write.

  Raises:
    UserError: if there is no class.
  """
  if not len(confusion):
    raise UserError('There are no classes to confuse.')
  names = [shown_name(name) for name in class_names]
  listed = len(names) <= _LISTED_CLASSES
  shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
  right = np.trace(confusion) / max(confusion.sum(), 1)
  with drawing():
    side = float(np.clip(1.5 + 0.42 * len(names), 3, 7.5)) if listed else 5.5
    figure = Figure(figsize=(side + (0.9 if listed else 4.2), side), layout='constrained')
    axes = figure.subplots(1, 1 if listed else 2, squeeze=False, width_ratios=[1] if listed else [1.5, 1])[0]
    # A square-root scale makes confusions of a few percent visible.
    drawn = axes[0].imshow(_largest(shares), cmap='Blues', norm=PowerNorm(0.5, 0, 1))
    axes[0].grid(False)
    axes[0].set(xlabel='predicted class', ylabel='true class', anchor='N',
                title=f'{right:.1%} of {confusion.sum():,} images are right')
    figure.colorbar(drawn, ax=axes[0], shrink=0.6, ticks=[0, 0.05, 0.25, 0.5, 1],
                    format=lambda share, _: f'{share:.0%}', label='share of the true class')
    if listed:
      _write_counts(axes[0], confusion, shares, names)
    else:
      axes[0].set(xticks=[], yticks=[])
      _list_pairs(axes[1], confusion, names)
    save(figure, out)


def most_confused(confusion: np.ndarray, count: int) -> list[tuple[int, int]]:
  """The pairs (true, predicted) of different classes with the most images; ties go to the first."""
  wrong = np.where(np.eye(len(confusion), dtype=bool), 0, confusion)
  order = np.argsort(-wrong, axis=None, kind='stable')[:count]
  pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
  return [(int(true), int(predicted)) for true, predicted in pairs if wrong[true, predicted]]


def _largest(shares):
  """The largest share in each block of classes, with at most 250 blocks per side."""
  starts = np.arange(0, len(shares), -(-len(shares) // _MOST_CELLS))
  return np.maximum.reduceat(np.maximum.reduceat(shares, starts, axis=0), starts, axis=1)


def _write_counts(axis, confusion, shares, names):
  places = range(len(names))
  axis.set_xticks(places, names, rotation=45, ha='right', rotation_mode='anchor')
  axis.set_yticks(places, names)
  axis.tick_params(length=0)
  for true, predicted in np.argwhere(confusion):
    axis.text(predicted, true, f'{confusion[true, predicted]}', ha='center', va='center', fontsize=7,
              color='white' if shares[true, predicted] > 0.3 else '#333333')


def _list_pairs(axis, confusion, names):
  axis.set_axis_off()
  axis.set_title('Most frequent confusions')
  totals = confusion.sum(axis=1)
  for line, (true, predicted) in enumerate(most_confused(confusion, _LISTED_PAIRS)):
    height = 0.97 - line / _LISTED_PAIRS
    axis.text(0, height, f'{names[true]} → {names[predicted]}', fontsize=8, va='top',
              transform=axis.transAxes)
    axis.text(0, height - 0.027, f'{confusion[true, predicted]:,} of {totals[true]:,}', fontsize=7, va='top',
              color='#666666', transform=axis.transAxes)
