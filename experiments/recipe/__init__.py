"""The recipe for a folder of one's own, on six sets: one typed line, but for the epochs."""
from collections.abc import Mapping
from typing import Any

from experiments.jobs import Experiment, Scale, Variant

# Of each set, so that a run of ConIC with its evaluation takes minutes of one core.
EPOCHS = {'photographs': 25, 'digits': 60, 'cifar3k': 20, 'cifar20k': 8, 'tiny5k': 12, 'imagenet1k': 40}
METHODS = {'conic': 'ConIC', 'simclr': 'SimCLR', 'moco_v2': 'MoCo v2'}
# A crop is looked for among the photographs: the nearest counts, and there are no classes to learn.
MORE = {'imagenet1k': {'eval.k': [1], 'eval.linear': False}}


def variants(scale: Scale) -> Mapping[str, Variant]:
  """`--config=configs/METHOD.py:folder --config.data.dir=SETS/SET` and the epochs; the rest is open."""
  return {f'{data}, {title}': Variant(config, {**typed(data), 'epochs': epochs})
          for config, title in METHODS.items() for data, epochs in EPOCHS.items()}


def typed(data: str) -> dict[str, Any]:
  """What is typed for a set."""
  return {'data.dir': data, 'data.train': 'train', 'data.test': 'test', **MORE.get(data, {})}


EXPERIMENT = Experiment(
  name='recipe',
  claim='With one typed line the encoder is better than raw pixels and than the same network at random.',
  source='the recipe for a folder of one’s own',
  paper='No paper says how.',
  variants=variants, questions=(), tuned=False, bare=True, own_page=True,
  measures=('knn_top1', 'linear_top1'))
