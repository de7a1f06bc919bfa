"""Too much consistency makes all features alike: ConIC's Appendix B."""
from collections.abc import Mapping

from experiments.jobs import Experiment, Scale, Variant
from experiments.statistics import Below, Higher

# Features that spread over the sphere have 1, a point 0.
COLLAPSED = 0.5
USUAL, LARGE, ALONE = 'α = 2.5', 'α = 100', 'consistency alone'
# The rate falls as α grows, so that the consistency loss moves the network as fast as at α = 2.5.
HUGE = 1e4


def variants(scale: Scale) -> Mapping[str, Variant]:
  """α at once, as pacing would hold it back."""
  at_once = {'alpha_pace': 0.0, 'eval.baselines': True}
  return {USUAL: Variant('conic', {'alpha': 2.5}),
          LARGE: Variant('conic', {**at_once, 'alpha': 100.0}),
          ALONE: Variant('conic', {**at_once, 'alpha': HUGE}, rate=2.5 / HUGE)}


EXPERIMENT = Experiment(
  name='conic_collapse',
  claim='Over-weighting the consistency loss collapses the features; alone it always does.',
  source='ConIC, Appendix B',
  paper='“Merely optimizing the consistency loss always leads to the trivial solution” (no figure).',
  variants=variants,
  questions=(Below('feature_std', LARGE, COLLAPSED), Below('feature_std', ALONE, COLLAPSED),
             Higher('random_init_knn_top1', LARGE, LARGE, than='knn_top1'),
             Higher('random_init_knn_top1', ALONE, ALONE, than='knn_top1')),
  asides=(Higher('feature_std', USUAL, LARGE), Higher('feature_std', USUAL, ALONE)),
  measures=('feature_std', 'probe_rankme', 'knn_top1', 'linear_top1'),
  meaning='Features keep a quarter to a third of their spread, and are no better than the random network’s: '
          'far from ConIC at its own weight, and in 20 epochs not yet a point.')
