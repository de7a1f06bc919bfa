"""The recipe's own length, forty minutes of a core: nothing typed but the folder."""
from collections.abc import Mapping

from experiments.jobs import Experiment, Scale, Variant
from experiments.recipe import typed

SETS, METHODS = ('cifar3k', 'imagenet1k'), {'conic': 'ConIC', 'simclr': 'SimCLR'}


def variants(scale: Scale) -> Mapping[str, Variant]:
  """Both methods have as many epochs as fit the minutes by the speed that they measure."""
  return {f'{data}, {title}': Variant(config, typed(data)) for data in SETS
          for config, title in METHODS.items()}


EXPERIMENT = Experiment(
  name='recipe_default',
  claim='What the recipe’s own forty minutes of one core give.',
  source='docs/recipe.md',
  paper='Beside the shorter runs of experiments/recipe.',
  variants=variants, questions=(), seeds=1, tuned=False, bare=True,
  measures=('epochs', 'knn_top1', 'linear_top1', 'random_init_knn_top1', 'random_init_linear_top1',
            'pixels_knn_top1', 'pixels_linear_top1'))
