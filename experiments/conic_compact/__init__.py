"""With the consistency loss the views of an image are closer and images further apart: ConIC's Fig. 2."""
from collections.abc import Mapping

from experiments.jobs import Experiment, Scale, Variant
from experiments.statistics import Higher, HigherAtEqual

WITH, WITHOUT = 'α = 2.5', 'α = 0'


def variants(scale: Scale) -> Mapping[str, Variant]:
  """The recipe's α, and none."""
  return {WITH: Variant('conic', {'alpha': 2.5}), WITHOUT: Variant('conic', {'alpha': 0.0})}


EXPERIMENT = Experiment(
  name='conic_compact',
  claim='With the consistency loss the views of an instance are more compact and instances are better '
        'separated, at equal classification loss too.',
  source='ConIC, Fig. 2 and §3.2',
  paper='Seen in pictures of eight images in two dimensions (experiments/toy_2d repeats these).',
  variants=variants,
  questions=(Higher('alignment', WITHOUT, WITH), Higher('uniformity', WITHOUT, WITH),
             HigherAtEqual('alignment', 'loss_instance', WITHOUT, WITH),
             HigherAtEqual('uniformity', 'loss_instance', WITHOUT, WITH)),
  measures=('alignment', 'uniformity', 'loss_instance'),
  meaning='The views of an instance are closer, as the paper says; instances spread less evenly over the '
          'sphere, which is not better separated.')
