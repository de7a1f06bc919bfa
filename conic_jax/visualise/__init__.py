"""Pictures of a run, its features and its views; one module per kind.

What draws is imported when it is first used: most processes draw nothing, and matplotlib takes its time.
"""
import importlib
from typing import TYPE_CHECKING, Any

from conic_jax.visualise.attempt import Draw, attempt, insist, reason

if TYPE_CHECKING:
  from conic_jax.visualise.activation_maps import activations_picture
  from conic_jax.visualise.confusion import confusion_picture
  from conic_jax.visualise.feature_points import feature_map
  from conic_jax.visualise.neighbours import neighbours_grid
  from conic_jax.visualise.segmentation import segmentation_picture
  from conic_jax.visualise.training_curves import loss_curves
  from conic_jax.visualise.view_sheet import Column, views_picture

__all__ = ['Column', 'Draw', 'activations_picture', 'attempt', 'confusion_picture', 'feature_map', 'insist',
           'loss_curves', 'neighbours_grid', 'reason', 'segmentation_picture', 'views_picture']

_MODULES = {
  'activations_picture': 'activation_maps', 'confusion_picture': 'confusion', 'feature_map': 'feature_points',
  'neighbours_grid': 'neighbours', 'segmentation_picture': 'segmentation', 'loss_curves': 'training_curves',
  'Column': 'view_sheet', 'views_picture': 'view_sheet'}


def __getattr__(name: str) -> Any:
  if name not in _MODULES:
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
  return getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)
