"""Pictures of a run, its features and its views; one module per kind."""
from conic_jax.visualise.activation_maps import activations_picture
from conic_jax.visualise.attempt import Draw, attempt, insist, reason
from conic_jax.visualise.confusion import confusion_picture
from conic_jax.visualise.feature_points import feature_map
from conic_jax.visualise.neighbours import neighbours_grid
from conic_jax.visualise.segmentation import segmentation_picture
from conic_jax.visualise.training_curves import loss_curves
from conic_jax.visualise.view_sheet import Column, views_picture

__all__ = ['Column', 'Draw', 'activations_picture', 'attempt', 'confusion_picture', 'feature_map', 'insist',
           'loss_curves', 'neighbours_grid', 'reason', 'segmentation_picture', 'views_picture']
