"""The quick start against its own α = 0, over seeds."""
from collections.abc import Mapping

from experiments.jobs import Experiment, Scale, Variant
from experiments.statistics import Higher

ITSELF, WITHOUT = 'the quick start', 'without consistency (α = 0)'


def variants(scale: Scale) -> Mapping[str, Variant]:
  """`make quickstart` with a seed, and with one setting changed."""
  return {ITSELF: Variant('conic:photos'), WITHOUT: Variant('conic:photos', {'alpha': 0.0})}


EXPERIMENT = Experiment(
  name='photos',
  claim='On patches of ten photographs the quick start’s encoder is better than raw pixels, than the same '
        'network at random, and than without its consistency loss.',
  source='the quick start',
  paper='The patches of a photograph overlap, so that its 1,960 held-out patches say less than as many '
        'images would.',
  variants=variants,
  questions=tuple(question for measure in ('knn_top1', 'linear_top1') for question in (
    Higher(measure, ITSELF, ITSELF, than=f'pixels_{measure}'),
    Higher(measure, ITSELF, ITSELF, than=f'random_init_{measure}'), Higher(measure, ITSELF, WITHOUT))),
  seeds=5, tuned=False, bare=True,
  measures=('knn_top1', 'linear_top1', 'random_init_knn_top1', 'random_init_linear_top1', 'pixels_knn_top1',
            'pixels_linear_top1'))
