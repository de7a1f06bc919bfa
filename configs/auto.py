"""Fields that the `folder` presets leave open: the recipe chooses them from the images, their number and the
machine.

Set an open field like any other, --config.batch_size=256, and the recipe never changes it; docs/recipe.md has
the rule for each field and the measurement behind it.
"""
from ml_collections import ConfigDict, config_dict

OPEN = {
  # Images.
  'data.train': str, 'data.test': str,
  'views.size': int, 'views.crop': tuple, 'views.strength': float, 'views.blur': float,
  'second_view.blur': float,
  # Network.
  'encoder.name': str, 'encoder.blocks': tuple, 'encoder.width': float, 'encoder.stem': str,
  'encoder.patch': int, 'encoder.positions': str,
  'head.hidden': int, 'predictor.hidden': int, 'cell.hidden': int,
  # Length.
  'minutes': float, 'batch_size': int, 'epochs': int,
  # Optimizer.
  'optimizer.name': str, 'optimizer.learning_rate': float, 'optimizer.warmup_epochs': float,
  'optimizer.schedule': str, 'optimizer.milestones': tuple,
  # Loss.
  'temperature': float, 'alpha_pace': float, 'smoothing.k': int, 'prior.normalise': bool, 'loss.noise': int,
  # Rows, queue, momentum encoder, batch-norm groups.
  'classifier.lr_scale': float, 'classifier.window': int, 'sampler.window': int, 'sampler.stride': int,
  'queue.size': int, 'queue.mask_own': bool, 'cell.queue': int, 'momentum.start': float,
  'batch_norm.groups': int,
  # Reports and evaluation.
  'log_every': int, 'knn_every': int, 'checkpoint.every_epochs': float,
  'eval.batch_size': int, 'eval.resize': int,
  'linear.epochs': int, 'linear.batch_size': int, 'linear.learning_rates': tuple, 'linear.normalise': str}


# Fields that stay 0 if a method sets them to 0: it has no hidden layer in its head, no blur, or no window of
# images.
KEPT_AT_ZERO = ('head.hidden', 'views.blur', 'second_view.blur', 'sampler.window')


def leave_open(config: ConfigDict) -> None:
  """Opens every field of `OPEN` that the config has."""
  for path in OPEN:
    group, _, name = path.rpartition('.')
    node = getattr(config, group, {}) if group else config
    if name in node and not (path in KEPT_AT_ZERO and node[name] == 0):
      leave_field_open(node, name, OPEN[path])


def leave_field_open(group, name: str, kind: type | None = None) -> None:
  """Opens one field of a group, with its own type or with `kind`."""
  kind = kind or type(group[name])
  with group.ignore_type():
    group[name] = config_dict.placeholder(kind)
