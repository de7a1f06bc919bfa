"""InsCon's multi-instance and cell-instance heads: Tables 6 to 9."""
from collections.abc import Mapping

from experiments.jobs import Experiment, Scale, Step, Variant
from experiments.statistics import Higher

TEMPERATURES, EARLIER = (0.1, 0.4), 'cells of the stage before the last'
SINGLE, MULTI, CELL, BOTH = 'MoCo v2', 'multi-instance', 'cell-instance', 'both'


def variants(scale: Scale) -> Mapping[str, Variant]:
  """Each head beside the single-instance one, and both; all on overlapping crops where there are cells."""
  off = {'multi.enabled': False, 'cell.enabled': False}
  heads = {SINGLE: {**off, 'views.overlap': 0.0}, MULTI: {'cell.enabled': False, 'views.overlap': 0.0},
           CELL: {'multi.enabled': False}, BOTH: {}}
  heads |= {f'cells, τ = {temperature:g}': {'multi.enabled': False, 'cell.temperature': temperature}
            for temperature in TEMPERATURES}
  heads[EARLIER] = {'multi.enabled': False, 'cell.position': 'res4'}
  return {name: Variant('inscon', changes, after=(segmented(scale),)) for name, changes in heads.items()}


def segmented(scale: Scale) -> Step:
  """DeepLabV3 on CamVid from the run's encoder."""
  return Step(('conic_jax.main', '--config=configs/segment.py:camvid', '--config.encoder={run}',
               '--config.data.dir={data}/camvid', '--config.seed={seed}',
               f'--config.segmentation.iterations={scale.iterations}'),
              'segment_camvid.json', ('miou',))


EXPERIMENT = Experiment(
  name='inscon_heads',
  claim='The multi-instance and the cell-instance head each help, together most.',
  source='InsCon, Tables 6 to 9',
  paper='Linear accuracy: MoCo v2 67.5, with the multi-instance head 70.3. COCO box AP: 39.8, cells 40.3, '
        'multi 40.7, both 40.9.',
  variants=variants,
  questions=(Higher('linear_top1', MULTI, SINGLE), Higher('knn_top1', MULTI, SINGLE),
             *(Higher('miou', first, second) for first, second in (
               (CELL, SINGLE), (MULTI, SINGLE), (BOTH, SINGLE), (BOTH, MULTI), (BOTH, CELL)))),
  asides=(*(Higher(measure, head, SINGLE) for measure in ('linear_top1', 'knn_top1')
            for head in (CELL, BOTH)),
          *(Higher('miou', CELL, f'cells, τ = {temperature:g}') for temperature in TEMPERATURES),
          Higher('miou', CELL, EARLIER)),
  measures=('knn_top1', 'linear_top1', 'miou'))
