"""The weight α of ConIC's consistency loss: Fig. 3 and Table 1."""
from collections.abc import Mapping

from experiments.jobs import Experiment, Scale, Variant
from experiments.statistics import Higher

PACE = 4.0
WEIGHTS = (0.0, 0.5, 1.0, 2.5, 5.0, 10.0)


def variants(scale: Scale) -> Mapping[str, Variant]:
  """α as the recipe has it, growing as the classification loss falls, and α constant as the paper has it."""
  paced = {f'α = {alpha:g}': Variant('conic', {'alpha': alpha, 'alpha_pace': PACE}, place=alpha,
                                        line='paced') for alpha in WEIGHTS}
  constant = {f'α = {alpha:g}, constant': Variant('conic', {'alpha': alpha, 'alpha_pace': 0.0}, place=alpha,
                                                  line='constant') for alpha in WEIGHTS[1:]}
  return {**paced, **constant}


def asked(kind: str) -> tuple[Higher, ...]:
  """That α = 2.5 is the best of them, of constant weights or of paced ones; α = 0 is both."""
  best = f'α = 2.5{kind}'
  losses = (Higher('loss_instance', name, best) for name in ('α = 0', f'α = 0.5{kind}', f'α = 10{kind}'))
  accuracies = (Higher(measure, best, name) for measure in ('knn_top1', 'linear_top1')
                for name in ('α = 0', f'α = 10{kind}'))
  return (*losses, *accuracies)


EXPERIMENT = Experiment(
  name='conic_alpha',
  claim='The classification loss falls as α rises to about 2.5, then rises; accuracies follow.',
  source='ConIC, Fig. 3 and Table 1',
  paper='The classification loss is least at α = 2.5, with higher linear accuracy there than at α = 0 '
        '(ResNet-50, ImageNet, 100 epochs).',
  variants=variants,
  questions=asked(', constant'), asides=asked(''),
  measures=('loss_instance', 'knn_top1', 'linear_top1'), axis='α')
