"""Training that starts from the weights of a run on other images."""
import dataclasses
from collections.abc import Mapping

from experiments.jobs import Experiment, Scale, Variant, settings_of
from experiments.statistics import Higher

SOURCE = 'tiny5k'
# What a run needs in which nothing is measured.
UNMEASURED = {'eval.knn': False, 'eval.linear': False, 'probe.images': 0, 'figures': False}
MEASURES = ('knn_top1', 'linear_top1')


def variants(scale: Scale) -> Mapping[str, Variant]:
  """From random weights and from the source's, equally long, on two sets."""
  first = settings_of(Variant('conic', UNMEASURED), scale, {})
  flags = [f'--config.{field}={tuple(value) if isinstance(value, list) else value}'
           for field, value in first.items() if field != 'data.dir']
  learn = ('conic_jax.main', f'--config=configs/conic.py:{scale.preset}', *flags, '--config.run={run}_start',
           '--config.seed={seed}', f'--config.data.dir={{data}}/{SOURCE}')
  found = {}
  for title, changes in (('CIFAR-10', {}), ('photographs', {'data.dir': 'photographs'})):
    found[f'{title}, cold'] = cold = Variant('conic', changes)
    found[f'{title}, warm'] = dataclasses.replace(
      cold, settings={**changes, 'encoder.weights': '{run}_start'}, before=(learn,))
  return found


EXPERIMENT = Experiment(
  name='warm_start',
  claim='On few images, weights of a run on other images are a better start than random ones, at equal time.',
  source='this library, docs/recipe.md',
  paper='Not a paper’s claim. The start is a run of ConIC on 5,000 images of Tiny-ImageNet, as long as the '
        'training that follows it; its time does not count.',
  variants=variants,
  questions=tuple(Higher(measure, f'{title}, warm', f'{title}, cold')
                  for title in ('CIFAR-10', 'photographs') for measure in MEASURES))
