"""All methods at one budget, tuned alike: ConIC's Table 3 and One-Million's Table 6."""
from collections.abc import Mapping

from experiments.inscon_heads import segmented
from experiments.jobs import Experiment, Scale, Variant
from experiments.statistics import NotBelow

MARGIN = 0.02
NAMES = {'conic': 'ConIC', 'conic_s': 'ConIC-S', 'one_million': 'One-Million', 'exemplar': 'Exemplar-CNN',
         'pic': 'PIC', 'instdisc': 'InstDisc', 'moco_v1': 'MoCo v1', 'moco_v2': 'MoCo v2',
         'co2_moco_v1': 'CO2, v1', 'co2_moco_v2': 'CO2, v2', 'inscon': 'InsCon', 'simclr': 'SimCLR',
         'byol': 'BYOL', 'align_uniform': 'AlignUniform'}


def variants(scale: Scale) -> Mapping[str, Variant]:
  """Each with the recipe's settings and its own rate."""
  return {title: Variant(config, after=(segmented(scale),) if config == 'inscon' else ())
          for config, title in NAMES.items()}


EXPERIMENT = Experiment(
  name='all_methods',
  claim='ConIC and One-Million are as good as or better than the methods of their time.',
  source='ConIC, Table 3; One-Million, Table 6',
  paper='Linear accuracy after 200 epochs: InstDisc 54.0, MoCo 60.6, SimCLR 66.6, MoCo v2 67.5, PIC 67.6, '
        'AlignUniform 67.7, One-Million 68.2; after 1,000: SimCLR 69.3, MoCo v2 71.1, One-Million 71.4. Of '
        'ConIC its text says that it is competitive with MoCo v2, PIC and PCL v2.',
  variants=variants,
  questions=tuple(NotBelow(measure, first, second, MARGIN) for measure in ('linear_top1', 'knn_top1')
                  for first, second in (('ConIC', 'InstDisc'), ('ConIC', 'MoCo v2'), ('ConIC', 'SimCLR'),
                                        ('One-Million', 'MoCo v2'), ('One-Million', 'SimCLR'))))
