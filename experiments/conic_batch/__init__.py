"""The size of the batch, to ConIC and to SimCLR: ConIC's Fig. 4."""
from collections.abc import Mapping

from experiments.jobs import Experiment, Scale, Variant
from experiments.statistics import Alike, Higher

NAMES = {'conic': 'ConIC', 'simclr': 'SimCLR'}
SIZES = ('small', 'middle', 'large')
MARGIN = 0.02


def variants(scale: Scale) -> Mapping[str, Variant]:
  """Sizes a factor of four apart, the rate in proportion, and as many epochs."""
  usual = scale.batches[1]
  return {f'{title}, {name} batch': Variant(config, {'batch_size': size}, rate=size / usual, place=size,
                                            line=title)
          for config, title in NAMES.items() for name, size in zip(SIZES, scale.batches, strict=True)}


EXPERIMENT = Experiment(
  name='conic_batch',
  claim='The size of the batch does not matter to ConIC; it does to SimCLR.',
  source='ConIC, Fig. 4 and §3.2',
  paper='ConIC with 256, 512 and 1,024 is similar in linear accuracy, VOC detection and COCO-stuff; '
        'SimCLR is said to need large ones.',
  variants=variants,
  questions=(*(Alike(measure, f'ConIC, {size} batch', 'ConIC, middle batch', MARGIN)
               for measure in ('knn_top1', 'linear_top1') for size in ('small', 'large')),
             *(Higher(measure, 'SimCLR, large batch', 'SimCLR, small batch')
               for measure in ('knn_top1', 'linear_top1'))),
  axis='batch', logarithmic=True)
