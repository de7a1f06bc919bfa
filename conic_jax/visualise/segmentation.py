"""Masks drawn over their images: truth next to prediction."""
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from conic_jax.errors import UserError
from conic_jax.visualise.style import GREY, draw_image, drawing, save, shown_name

_VOID = 255
_OPACITY = 0.6
_LISTED_CLASSES = 24
_HEIGHTS = 0.2, 5  # Of a panel, relative to its width; an image beyond them leaves room beside it.
_TITLES = 'image', 'truth', 'prediction'


def segmentation_picture(images: Sequence[np.ndarray], truths: Sequence[np.ndarray],
                         predictions: Sequence[np.ndarray], class_names: Sequence[str], out: Path) -> None:
  """Draws images, overlays of their true and predicted classes, and a legend.

  Pixels without a class are left unchanged. The legend lists the 24 classes with the most pixels.

  Args:
    images: n arrays uint8 [h, w, 3].
    truths, predictions: n arrays uint8 [h, w], 255 for no class.
    class_names: names of the classes.
    out: file to write.

  Raises:
    UserError: if there is no image.
  """
  if not len(images):
    raise UserError('There are no images to show.')
  colours = _colours(len(class_names))
  heights = [float(np.clip(len(image) / image.shape[1], *_HEIGHTS)) for image in images]
  with drawing():
    figure = Figure(figsize=(7.5, 2.4 * sum(heights) + 1.1), layout='constrained')
    axes = figure.subplots(len(images), len(_TITLES), squeeze=False, height_ratios=heights)
    for row, image, truth, prediction in zip(axes, images, truths, predictions, strict=True):
      for axis, picture in zip(row, (image, _over(image, truth, colours), _over(image, prediction, colours)),
                               strict=True):
        draw_image(axis, picture, GREY)
        axis.spines[:].set(linewidth=0.6)
    for axis, title in zip(axes[0], _TITLES, strict=True):
      axis.set_title(title, loc='center')
    handles = [Patch(color=tuple(colours[label]), label=shown_name(class_names[int(label)]))
               for label in _commonest(truths, predictions)]
    figure.legend(handles=handles, loc='outside lower center', ncols=6, fontsize=8, handlelength=1,
                  columnspacing=1.2)
    save(figure, out)


def _colours(count):
  """Class colours, float [count, 3]: the 20 of tab20, then hues spaced by the golden ratio."""
  listed = np.array(matplotlib.colormaps['tab20'].colors)  # pyright: ignore[reportAttributeAccessIssue]
  order = np.concatenate([np.arange(0, 20, 2), np.arange(1, 20, 2)])
  hues = np.arange(max(count - len(listed), 0)) * (5 ** 0.5 - 1) / 2 % 1
  return np.concatenate([listed[order], matplotlib.colormaps['hsv'](hues)[:, :3]])[:count]


def _over(image, classes, colours):
  """The image, uint8 [h, w, 3], overlaid with the colours of its pixels' classes."""
  drawn = image.copy()
  known = classes != _VOID
  mixed = (1 - _OPACITY) * image[known] + _OPACITY * 255 * colours[classes[known]]
  drawn[known] = np.round(mixed).astype(np.uint8)
  return drawn


def _commonest(truths, predictions):
  """Labels of the classes with the most pixels, ascending."""
  pixels = np.concatenate([np.ravel(part) for part in (*truths, *predictions)])
  labels, counts = np.unique(pixels[pixels != _VOID], return_counts=True)
  return np.sort(labels[np.argsort(-counts, kind='stable')[:_LISTED_CLASSES]])
