"""What a network at random already tells apart, by its batch norm: One-Million's Fig. 4."""
from collections.abc import Mapping

from experiments.jobs import Experiment, Scale, Step, Variant, settings_of
from experiments.statistics import Higher

NAMES = ('similarity_gap', 'class_retrieval', 'class_chance')


def variants(scale: Scale) -> Mapping[str, Variant]:
  """No training: the two batch norms of the pass before it."""
  settings = settings_of(Variant('one_million'), scale, {})
  return {name: Variant('', settings, after=(measured(scale, mode),))
          for name, mode in (('running batch norm', 'running'), ('fixed batch norm', 'frozen'))}


def measured(scale: Scale, mode: str) -> Step:
  """The command that measures a random network."""
  return Step(('experiments.one_million_features.measure', f'--scale={scale.name}', f'--batch_norm={mode}',
               '--data={data}', '--seed={seed}', '--out={run}/features.json'), 'features.json', NAMES)


EXPERIMENT = Experiment(
  name='one_million_features',
  claim='Under running batch norm the features of a random network tell instances apart better than under '
        'fixed batch norm, and retrieve the class above chance.',
  source='One-Million, Fig. 4 and “A Contrastive Prior”',
  paper='Own views are more similar than others by 9.3 points against 1.5; the nearest image of ImageNet is '
        'of the same class in 3 % of the cases, by chance in 0.1 %.',
  variants=variants,
  questions=(Higher('similarity_gap', 'running batch norm', 'fixed batch norm'),
             Higher('class_retrieval', 'running batch norm', 'running batch norm', than='class_chance')),
  measures=('similarity_gap', 'class_retrieval', 'class_chance'), seeds=5, tuned=False,
  meaning='The gap is wider than the paper’s; classes are retrieved a little better under fixed batch norm, '
          'so that it is instances that running batch norm tells apart.')
