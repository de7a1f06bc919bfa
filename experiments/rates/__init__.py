"""The learning rate of every method, on one small grid with one seed, on held-out training images."""
from collections.abc import Mapping

from experiments.jobs import Experiment, Scale, Variant
from experiments.scales import CONFIGS

FACTORS = (1 / 3, 1.0, 3.0)


def variants(scale: Scale) -> Mapping[str, Variant]:
  """Every method at a third, once and thrice the recipe's rate; rows of a classifier turn as fast at each."""
  if not scale.tuned:
    return {}
  rate = scale.common['optimizer.learning_rate']
  found = {}
  for config, settings in CONFIGS.items():
    for factor in FACTORS:
      changes = {'data.test': 'choose', 'optimizer.learning_rate': round(rate * factor, 4)}
      if 'classifier.lr_scale' in settings and config != 'pic':
        changes['classifier.lr_scale'] = round(settings['classifier.lr_scale'] / factor, 2)
      found[f'{config}, {rate * factor:g}'] = Variant(config, changes, place=rate * factor, line=config)
  return found


EXPERIMENT = Experiment(
  name='rates',
  claim='The learning rate of every method.',
  source='for all comparisons',
  paper='Each paper tuned its own.',
  variants=variants, questions=(), seeds=1, tuned=False, axis='learning rate', logarithmic=True)
