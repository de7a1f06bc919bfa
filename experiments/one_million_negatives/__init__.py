"""The full softmax against drawn negatives: One-Million's Table 3."""
from collections.abc import Mapping

from experiments.jobs import Experiment, Scale, Variant
from experiments.statistics import Higher

# Shares of the images that are drawn; the paper draws from 1,024 to 65,536 of 1.28 million. The batch's own
# classes are negatives too, beside those.
SHARES = (64, 16, 4)
NAMES = tuple(f'1/{share} of the classes drawn' for share in SHARES)


def variants(scale: Scale) -> Mapping[str, Variant]:
  """Without prior and smoothing, as in the paper."""
  bare = {'smoothing.alpha': 0.0, 'prior.batch_norm': 'none'}
  images = scale.images
  drawn = {name: Variant('one_million', {**bare, 'classifier.drawn': images // share},
                         place=images // share + scale.batches[1])
           for name, share in zip(NAMES, SHARES, strict=True)}
  return {**drawn, 'all classes': Variant('one_million', bare, place=images)}


EXPERIMENT = Experiment(
  name='one_million_negatives',
  claim='The full softmax beats drawn negatives, and more of them are better.',
  source='One-Million, Table 3',
  paper='Linear accuracy: 2¹⁰ of 1.28 million 64.8, 2¹² 65.3, 2¹⁴ 65.4, 2¹⁶ 65.5, all 67.3.',
  variants=variants,
  questions=(*(Higher('linear_top1', 'all classes', name) for name in NAMES),
             Higher('linear_top1', NAMES[2], NAMES[0])),
  axis='negatives, those of the batch included', logarithmic=True)
