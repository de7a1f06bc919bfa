"""The learning rate of every method, on one small grid with one seed, on held-out training images."""
from collections.abc import Mapping

from experiments.jobs import Experiment, Scale, Variant
from experiments.scales import CONFIGS

FACTORS = (0.5, 1.0, 2.0)


def variants(scale: Scale) -> Mapping[str, Variant]:
  """Every method at half, once and twice the recipe's rate; rows of a classifier turn as fast at each."""
  if not scale.tuned:
    return {}
  rate = scale.common['optimizer.learning_rate']
  found = {}
  for config, settings in CONFIGS.items():
    for factor in FACTORS:
      changes = {'data.test': 'choose', 'optimizer.learning_rate': rate * factor}
      if 'classifier.lr_scale' in settings and config != 'pic':
        changes['classifier.lr_scale'] = settings['classifier.lr_scale'] / factor
      found[f'{config}, {rate * factor:g}'] = Variant(config, changes, place=rate * factor, line=config)
  return found


EXPERIMENT = Experiment(
  name='rates',
  claim='Every method has the learning rate that suits it.',
  source='for all comparisons',
  paper='Each paper tuned its own.',
  variants=variants, questions=(), seeds=1, tuned=False, axis='learning rate', logarithmic=True)
