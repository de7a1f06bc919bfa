"""Rows that start as features of the random network, at four lengths of training: One-Million's Table 4."""
import dataclasses
from collections.abc import Mapping

from experiments.jobs import Experiment, Scale, Variant
from experiments.statistics import Higher, HigherGain

FIXED = 'prior under fixed batch norm, short'
ORDER = ('shortest', 'short', 'long', 'longest')


def variants(scale: Scale) -> Mapping[str, Variant]:
  """With and without the prior; labels are not smoothed, as in Table 4."""
  found = {}
  for name, epochs in zip(ORDER, scale.lengths, strict=True):
    length = {'epochs': epochs, 'optimizer.warmup_epochs': epochs / 10, 'smoothing.alpha': 0.0}
    found[f'prior, {name}'] = Variant('one_million', length, place=epochs, line='prior')
    found[f'random rows, {name}'] = Variant('one_million', {**length, 'prior.batch_norm': 'none'},
                                            place=epochs, line='random rows')
  short = found[f'prior, {ORDER[1]}']
  found[FIXED] = dataclasses.replace(short, settings={**short.settings, 'prior.batch_norm': 'frozen'},
                                     line='prior under fixed batch norm')
  return found


EXPERIMENT = Experiment(
  name='one_million_prior',
  claim='A contrastive prior speeds the early epochs, and matters less the longer the training.',
  source='One-Million, Table 4',
  paper='Linear accuracy rises by 15.0 points after 10 epochs, 5.5 after 25, 1.9 after 50 and 0.3 after 200.',
  variants=variants,
  questions=(*(Higher(measure, f'prior, {name}', f'random rows, {name}')
               for measure in ('linear_top1', 'knn_top1') for name in ORDER[:2]),
             HigherGain('linear_top1', ('prior, shortest', 'random rows, shortest'),
                        ('prior, longest', 'random rows, longest'))),
  asides=(Higher('linear_top1', 'prior, longest', 'random rows, longest'),
          Higher('linear_top1', 'prior, short', FIXED)),
  measures=('linear_top1', 'knn_top1', 'loss_instance'), axis='epochs', logarithmic=True)
