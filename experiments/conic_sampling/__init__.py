"""ConIC's softmax over a window of classes, with and without their weight β: Fig. 5."""
from collections.abc import Mapping

from experiments.jobs import Experiment, Scale, Variant
from experiments.statistics import Alike, Higher

FULL, WEIGHTED, PLAIN = 'all classes', 'window, β = (N − 1)/(N′ − 1)', 'window, β = 1'
MARGIN = 0.02


def variants(scale: Scale) -> Mapping[str, Variant]:
  """A twentieth of the classes in the window, as in the paper; all have ConIC's rate."""
  window = {'classifier.window': scale.window}
  return {FULL: Variant('conic', {'alpha': 2.5}), WEIGHTED: Variant('conic_s', window, rate_of='conic'),
          PLAIN: Variant('conic_s', {**window, 'classifier.beta': 1.0}, rate_of='conic')}


EXPERIMENT = Experiment(
  name='conic_sampling',
  claim='Sampling with the weight β equals the full softmax; β = 1 is worse.',
  source='ConIC, Fig. 5',
  paper='“Sampling compensation performs better than without and similar to the baseline without sampling.”',
  variants=variants,
  questions=tuple(question for measure in ('knn_top1', 'linear_top1')
                  for question in (Alike(measure, WEIGHTED, FULL, MARGIN), Higher(measure, WEIGHTED, PLAIN))))
