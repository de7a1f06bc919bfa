"""The linear protocol on a frozen encoder.

  python -m conic_jax.main --config=configs/linear.py --config.encoder=runs/photos
  python -m conic_jax.main --config=configs/linear.py:photos --config.encoder=random
  python -m conic_jax.main --config=configs/linear.py:conic --config.encoder=conic.safetensors \\
    --config.data.dir=TFDS_DIR

The recipes on ImageNet: conic (Appendix C.2: 100 epochs, cosine from 75; the batch of 512 is ours), moco
(100 epochs, batch 256, 30 divided by 10 at 60 and 80) and one_million (batch 2048, cosine from 40; the 100
epochs are ours). The effect of a rate scales with the square of the features' norm, so a rate that suits one
encoder may diverge on another. Several rates form a sweep: all are trained at once and the best is chosen on
a tenth of the training images; the small presets do this. The scale of the features is reported.

A field that is None, or an empty data name, takes its value from the encoder's own run. A random encoder or a
weights file has no run: the preset provides the data, and for a random encoder its network. The result is
printed and written to linear.json (linear_PRESET.json) in config.run, by default the encoder's run or
runs/evaluated_NAME, with a figure of the confusion matrix.
"""
from ml_collections import ConfigDict

from configs import auto, common, knn

RECIPES = {
  'conic': {'learning_rates': (75.0,), 'batch_size': 512, 'schedule': 'cosine', 'milestones': ()},
  'moco': {'learning_rates': (30.0,), 'batch_size': 256, 'schedule': 'steps', 'milestones': (0.6, 0.8)},
  'one_million': {'learning_rates': (40.0,), 'batch_size': 2048, 'schedule': 'cosine', 'milestones': ()}}
PRESETS = (*knn.PRESETS, *RECIPES)


def get_config(preset: str = 'run') -> ConfigDict:
  """The settings of the run's own config, or of a recipe; imagenet is conic."""
  common.check('linear', PRESETS, preset)
  config = common.classification('linear', 'linear' if preset == 'run' else f'linear_{preset}',
                                 'imagenet' if preset in RECIPES else preset)
  config.linear = common.linear(epochs=100, normalise='none', **RECIPES.get(preset, RECIPES['conic']))
  if preset == 'run':
    for field in config.linear:
      auto.leave_field_open(config.linear, field)
  if preset in ('cifar10', 'photos'):
    config.linear.learning_rates = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
  if preset == 'photos':
    config.linear.epochs, config.linear.batch_size = 10, 128
  return config.lock()
