"""CO2's consistency on MoCo v1 and v2, and its two numbers: Table 1 and Fig. 2."""
from collections.abc import Mapping

from experiments.jobs import Experiment, Scale, Variant
from experiments.statistics import Higher

WEIGHTS, TEMPERATURES = (0.1, 1.0, 3.0), (0.02, 0.1)


def variants(scale: Scale) -> Mapping[str, Variant]:
  """With and without; on v2 α and τ_con around 0.3 and 0.05."""
  found = {'MoCo v1': Variant('moco_v1'), 'MoCo v1 + CO2': Variant('co2_moco_v1'),
           'MoCo v2': Variant('moco_v2'), 'MoCo v2 + CO2': Variant('co2_moco_v2')}
  found |= {f'v2, α = {alpha:g}': Variant('co2_moco_v2', {'consistency.alpha': alpha}) for alpha in WEIGHTS}
  found |= {f'v2, τ_con = {temperature:g}': Variant('co2_moco_v2', {'consistency.temperature': temperature})
            for temperature in TEMPERATURES}
  return found


EXPERIMENT = Experiment(
  name='co2',
  claim='Consistency of the similarities to the negatives improves MoCo v1 and v2.',
  source='CO2, Table 1 and Fig. 2',
  paper='Linear accuracy: MoCo v1 60.6, with CO2 63.5; MoCo v2 67.5, with CO2 68.0.',
  variants=variants,
  questions=tuple(Higher(measure, f'MoCo {version} + CO2', f'MoCo {version}')
                  for version in ('v1', 'v2') for measure in ('linear_top1', 'knn_top1')),
  asides=tuple(Higher('linear_top1', 'MoCo v2 + CO2', other) for other in (
    *(f'v2, α = {alpha:g}' for alpha in WEIGHTS),
    *(f'v2, τ_con = {temperature:g}' for temperature in TEMPERATURES))))
