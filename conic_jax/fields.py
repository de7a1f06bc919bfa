"""Every field of a config: its type, its range and its meaning; and the check of all of them.

A field that is not listed, as those that a method of your own adds, is checked by what reads it.
"""
import dataclasses
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from conic_jax.errors import UserError

_SEED = 2**32 - 1
_WIDEST = 52  # Of a column of the description.


@dataclasses.dataclass(frozen=True)
class Rule:
  """The values that a field may have.

  Attributes:
    kind: the type, as in 'a whole number'; is_kind: whether a value is of it.
    range: the range, as in 'at least 1'; '' if every value of the type will do.
    holds: whether a value of the type is in the range.
    choices: the only values of a word; () if it may be any.
    demand: the range in a message; '' for 'it must be' and the range.
  """
  kind: str
  is_kind: Callable[[Any], bool]
  range: str = ''
  holds: Callable[[Any], bool] = lambda value: True
  choices: tuple[str, ...] = ()
  demand: str = ''

  def mistake(self, value: Any) -> str | None:
    """What is wrong with a value, to follow 'config.FIELD is VALUE'; None if nothing is."""
    if not self.is_kind(value):
      return f': it must be {self.kind}.'
    if self.choices and value not in self.choices:
      return f'; available: {", ".join(self.choices)}.'
    return None if self.holds(value) else f': {self.demand or f"it must be {self.range}"}.'

  def in_words(self) -> str:
    """Type and range, as in 'whole number, at least 1'."""
    if self.choices:
      return ' | '.join(self.choices)
    kind = self.kind.removeprefix('a ')
    return f'{kind}, {self.range}' if self.range else kind


class Field(NamedTuple):
  """A field of a config."""
  rule: Rule
  meaning: str


# ---- Rules --------------------------------------------------------------------------------------


def _is_number(value):
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value):
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def at_least(least: int, most: int | None = None) -> Rule:
  """A whole number in a range."""
  if most is None:
    return Rule('a whole number', _is_whole, f'at least {least}', lambda value: value >= least)
  return Rule('a whole number', _is_whole, f'from {least} to {most}', lambda value: least <= value <= most)


def number(words: str, holds: Callable[[float], bool]) -> Rule:
  """A finite number for which `holds`."""
  return Rule('a number', _is_number, words, lambda value: math.isfinite(value) and holds(value))


ABOVE_0 = number('above 0', lambda value: value > 0)
NOT_NEGATIVE = number('0 or above', lambda value: value >= 0)
SHARE = number('from 0 to 1', lambda value: 0 <= value <= 1)
BELOW_1 = number('at least 0 and below 1', lambda value: 0 <= value < 1)
FLAG = Rule('true or false', lambda value: isinstance(value, bool))
TEXT = Rule('a text', lambda value: isinstance(value, str))


def one_of(*choices: str) -> Rule:
  """One of these words."""
  return dataclasses.replace(TEXT, choices=choices)


def each(rule: Rule, least: int = 0, count: int | None = None) -> Rule:
  """A tuple of values, at least `least` (0 or 1) or exactly `count`, for each of which a rule holds."""
  amount = f'{count} values' if count else 'at least one value' if least else ''
  plural = rule.kind.removeprefix('a ') + 's'
  def joined(*parts: str) -> str:
    return ', '.join(filter(None, parts))
  return Rule(
    f'a tuple of {plural}', lambda value: _is_tuple(value) and all(map(rule.is_kind, value)),
    joined(amount, rule.range and f'each {rule.range}'),
    lambda value: (len(value) == count if count else len(value) >= least) and all(map(rule.holds, value)),
    demand=joined(amount and f'it must have {amount}', rule.range and f'each must be {rule.range}'))


def ascending(words: str, holds: Callable[[float], bool]) -> Rule:
  """Two finite numbers, the smaller first, for which `holds`."""
  pair = f'two values {words}, the smaller first'
  return Rule('a tuple of numbers', lambda value: _is_tuple(value) and all(map(_is_number, value)), pair,
              lambda value: len(value) == 2 and all(math.isfinite(one) and holds(one) for one in value)
              and value[0] <= value[1], demand=f'it must have {pair}')


def _is_tuple(value):
  return isinstance(value, (tuple, list))


SCHEDULE = one_of('cosine', 'steps')
AREA = ascending('above 0 and at most 1', lambda value: 0 < value <= 1)
RANGE = ascending('above 0', lambda value: value > 0)
MILESTONES = each(number('between 0 and 1', lambda value: 0 < value < 1))
SIDES = each(at_least(1), count=2)
STEPS = Rule('a tuple of whole numbers', lambda value: _is_tuple(value) and all(map(_is_whole, value)),
             'two at least 0, the smaller first, or ()',
             lambda value: not value or (len(value) == 2 and 0 <= value[0] < value[1]),
             demand='it must be empty or have two values at least 0, the smaller first')

# ---- Fields -------------------------------------------------------------------------------------

_VIEWS = {
  'count': Field(at_least(1), 'views per image'),
  'size': Field(at_least(1), 'pixels per side'),
  'crop': Field(AREA, 'smallest and largest crop area, as a share of the image'),
  'aspect': Field(RANGE, 'narrowest and widest crop, width over height'),
  'overlap': Field(SHARE, 'least overlap of two crops, as a share of the smaller; 0: none needed'),
  'interpolation': Field(one_of('bilinear', 'bicubic'), "bicubic is TensorFlow's without antialiasing"),
  'flip': Field(SHARE, 'probability of a horizontal flip'),
  'jitter': Field(SHARE, 'probability of the colour jitter'),
  'strength': Field(NOT_NEGATIVE, "factor on the jitter's four ranges"),
  'colour': Field(one_of('torchvision', 'tensorflow'),
                  'how colours change; tensorflow: contrast per channel, saturation in HSV'),
  'additive_brightness': Field(FLAG, 'add the brightness, rather than multiply by it'),
  'brightness': Field(NOT_NEGATIVE, 'range of the brightness'),
  'contrast': Field(NOT_NEGATIVE, 'range of the contrast'),
  'saturation': Field(NOT_NEGATIVE, 'range of the saturation'),
  'hue': Field(SHARE, 'range of the hue, as a share of the colour circle'),
  'grayscale': Field(SHARE, 'probability of dropping the colour'),
  'blur': Field(SHARE, 'probability of the Gaussian blur'),
  'blur_sigma': Field(RANGE, 'range of its standard deviation, in pixels'),
  'blur_kernel': Field(SHARE, 'width of its kernel, as a share of the side'),
  'solarise': Field(SHARE, 'probability of inverting pixels of at least 0.5'),
  'mean': Field(each(number('', math.isfinite), count=3), 'subtracted from the channels, which are 0 to 1'),
  'std': Field(each(ABOVE_0, count=3), 'the channels are divided by this'),
}
_NETWORK = {
  'name': Field(TEXT, 'resnet18 to 152, vit_tiny to base, convnext_tiny, small, or your module'),
  'blocks': Field(each(at_least(1)), "blocks per stage; () is the network's own"),
  'stem': Field(one_of('imagenet', 'cifar'), 'first layers; cifar for small images'),
  'width': Field(ABOVE_0, 'factor on the channels'),
  'zero_gamma': Field(FLAG, 'blocks start as the identity'),
  'output_stride': Field(Rule('a whole number', _is_whole, '8, 16 or 32', lambda value: value in (8, 16, 32)),
                         'image pixels per pixel of the last map; 8 and 16 dilate instead'),
  'patch': Field(at_least(0), "side of a ViT's or ConvNeXt's patches in pixels; 0 follows the stem"),
  'positions': Field(one_of('sincos', 'learned'), "of a ViT's patches; sincos is fixed, for any size"),
  'frozen_patches': Field(FLAG, "a ViT's patches keep their random projection, which is stabler"),
  'remat': Field(FLAG, 'compute the blocks again for the gradients: slower, saves memory'),
}
_HEAD = {
  'hidden': Field(at_least(0), 'width of the hidden layer; 0 is one linear layer'),
  'features': Field(at_least(1), 'D, width of the output'),
  'norm': Field(FLAG, 'batch norm after each layer'),
  'output_bias': Field(FLAG, 'bias of the last layer: the batch norm, or the linear one without norm'),
}

FIELDS: dict[str, dict[str, Field]] = {
  '': {
    'task': Field(TEXT, 'pretrain, knn, linear, finetune, svm, segment, or a module of yours'),
    'method': Field(TEXT, 'a file of conic_jax/methods, or a module of yours'),
    'run': Field(TEXT, 'folder, here or in a bucket, for checkpoints and figures; resumed if it exists'),
    'seed': Field(at_least(0, _SEED), 'for everything random'),
    'num_instances': Field(at_least(0), 'N for the plan command; 0 is the number of images in the data set'),
    'batch_size': Field(at_least(1), 'images per step, over all devices'),
    'accumulate': Field(at_least(1), 'parts of a batch, taken one after the other to save memory'),
    'epochs': Field(at_least(1), 'passes over the images'),
    'minutes': Field(NOT_NEGATIVE, 'time for open epochs (auto); 0 is no limit'),
    'max_steps': Field(at_least(0), 'stop after this many steps; 0 runs all'),
    'dtype': Field(one_of('auto', 'float32', 'bfloat16', 'float16'), 'compute type; auto suits the device'),
    'kernels': Field(FLAG, 'Pallas kernels for the softmax where they serve; false: XLA everywhere'),
    'log_every': Field(at_least(1), 'steps between two reports'),
    'knn_every': Field(at_least(0), 'epochs between online kNN evaluations; 0 is never'),
    'profile': Field(STEPS, 'between which steps a jax.profiler trace is made; () for none'),
    'figures': Field(FLAG, 'draw curves, neighbours and a map of the features at the end'),
    'temperature': Field(ABOVE_0, 'the logits are divided by it'),
    'alpha': Field(NOT_NEGATIVE, 'α, weight of the consistency loss'),
    'alpha_pace': Field(NOT_NEGATIVE, '0: α from the start; c: α · min(1, c (1 − ℓs/log N))'),
    'result': Field(TEXT, 'name of the JSON file of results'),
    'encoder': Field(TEXT, 'a run folder, a weights file, or random'),
  },
  'mesh': {},
  'data': {
    'name': Field(TEXT, "a TFDS name, 'folder', 'wds', 'parquet', 'list', 'photos', or your module"),
    'dir': Field(TEXT, "the folder, file or pattern of images, or TFDS's data_dir; local or gs://"),
    'train': Field(TEXT, "a TFDS split expression, a subfolder, a part of files' names; '' is all"),
    'test': Field(TEXT, "for kNN and the linear protocol; '' for none"),
    'image': Field(TEXT, "feature of a TFDS set, column, or ending in tars; '' if there is no doubt"),
    'label': Field(TEXT, "likewise; 'none' for no labels"),
    'cache': Field(TEXT, "folder for indexes of TFRecords, tars, …; '' is ~/.cache/conic_jax"),
  },
  'sampler': {
    'window': Field(at_least(0), "PIC's sliding window, in images; 0 is every image once per epoch"),
    'stride': Field(at_least(0), 'images that the window advances by'),
  },
  'views': _VIEWS, 'small_views': {**_VIEWS, 'count': Field(at_least(0), 'small views per image')},
  'second_view': _VIEWS,
  'network': _NETWORK, 'encoder': {
    **_NETWORK, 'weights': Field(TEXT, "a file or a run that training starts from; '' is a random encoder")},
  'head': _HEAD, 'predictor': _HEAD,
  'optimizer': {
    'name': Field(one_of('sgd', 'lars', 'adamw'), 'the optimizer'),
    'learning_rate': Field(NOT_NEGATIVE, 'for this batch size; never rescaled'),
    'warmup_epochs': Field(NOT_NEGATIVE, 'epochs during which the rate rises'),
    'schedule': Field(SCHEDULE, 'how the rate falls'),
    'end': Field(NOT_NEGATIVE, 'last rate of the cosine'),
    'milestones': Field(each(NOT_NEGATIVE), "epochs at which 'steps' divides the rate by 10"),
    'per_epoch': Field(FLAG, 'change the rate only at the start of an epoch'),
    'momentum': Field(BELOW_1, 'of sgd and lars; β₁ of adamw'),
    'beta2': Field(BELOW_1, 'β₂ of adamw'),
    'weight_decay': Field(NOT_NEGATIVE, 'of sgd, lars and adamw, where it is decoupled'),
    'decay_vectors': Field(FLAG, "weight decay on biases and batch norm too, as in PyTorch's SGD"),
    'trust': Field(ABOVE_0, 'trust ratio of lars; not applied to biases and batch norm'),
    'lr_in_momentum': Field(FLAG, 'for lars: apply the rate inside the momentum, rather than outside'),
  },
  'classifier': {
    'norm': Field(ABOVE_0, 'initial norm of the rows'),
    'lr_scale': Field(NOT_NEGATIVE, "the rows' learning rate, as a multiple of the network's"),
    'momentum': Field(BELOW_1, "of the rows' SGD"),
    'weight_decay': Field(NOT_NEGATIVE, "of the rows' SGD"),
    'chunk_size': Field(at_least(0), 'rows scored at a time; 0 chooses for the device'),
    'window': Field(at_least(1), 'N′, classes in the softmax'),
    'beta': Field(NOT_NEGATIVE, 'weight of each negative; 0 is (N − 1)/(N′ − 1)'),
    'store': Field(one_of('device', 'host', 'disk'), 'where the rows outside the window are'),
    'drawn': Field(at_least(0), 'negatives drawn anew in every step; 0 is all'),
  },
  'momentum': {
    'start': Field(SHARE, 'share of itself that the momentum encoder keeps in each step'),
    'schedule': Field(one_of('constant', 'cosine'), 'cosine rises to 1'),
  },
  'queue': {
    'size': Field(at_least(1), 'keys in the queue'),
    'split': Field(FLAG, 'split the queue over the devices'),
    'mask_own': Field(FLAG, "leave out an image's own keys"),
  },
  'batch_norm': {
    'groups': Field(at_least(0), 'groups of the batch with statistics of their own; 0 is the whole batch'),
    'shuffle': Field(FLAG, 'shuffle the images over the groups for the momentum encoder'),
  },
  'consistency': {
    'alpha': Field(NOT_NEGATIVE, 'α, weight of the consistency'),
    'temperature': Field(ABOVE_0, 'τ of the consistency'),
  },
  'align_uniform': {
    'align': Field(NOT_NEGATIVE, 'weight of the alignment'),
    'uniform': Field(NOT_NEGATIVE, 'weight of the uniformity'),
    't': Field(ABOVE_0, 'of its Gaussian potential'),
  },
  'bank': {'momentum': Field(BELOW_1, 'of a row of the bank, which is then normalised')},
  'loss': {
    'name': Field(one_of('nce', 'full'), 'full is the softmax over the whole bank'),
    'noise': Field(at_least(1), 'bank rows drawn as noise for each image'),
    'reduction': Field(one_of('mean', 'sum'), 'of both directions'),
  },
  'smoothing': {
    'alpha': Field(SHARE, 'share of the label given to the hardest classes; 0 is no smoothing'),
    'k': Field(at_least(1), 'hardest classes per image'),
    'table': Field(one_of('auto', 'epoch', 'batch'),
                   'found per epoch for all, or per batch; auto: batch above 10⁸ images'),
    'search': Field(one_of('exact', 'approximate'), 'of the table of an epoch; approximate costs a fifth'),
  },
  'prior': {
    'batch_norm': Field(one_of('none', 'running', 'frozen'), "of the prior's network; none for random rows"),
    'normalise': Field(FLAG, 'normalise the features that become rows'),
    'keep_statistics': Field(FLAG, "carry the pass's running statistics over into training"),
  },
  'multi': {'enabled': Field(FLAG, 'use the multi-instance head')},
  'cell': {
    **_HEAD,
    'enabled': Field(FLAG, 'use the cell-instance head'),
    'size': Field(at_least(1), 'cells per side'),
    'position': Field(one_of('res5', 'res4'), 'the last stage, or the one before'),
    'outside': Field(one_of('edge', 'zero'), 'value beyond the outermost features'),
    'queue': Field(at_least(1), 'keys of cells in their queue'),
    'temperature': Field(ABOVE_0, 'of the softmax of cells'),
  },
  'log': {
    'wandb': Field(TEXT, "project of Weights & Biases, or TEAM/PROJECT; '' for none"),
  },
  'checkpoint': {
    'every_epochs': Field(ABOVE_0, 'epochs between checkpoints'),
    'keep': Field(at_least(1), 'checkpoints to keep, of which there are two at least'),
    'verify': Field(FLAG, 'compare a checkpoint with the hashes of what was saved as a run resumes'),
  },
  'probe': {
    'images': Field(at_least(0), 'maximum training images; fewer in a short run; 0 turns the probe off'),
    'times': Field(at_least(1), 'probes per run, evenly spaced, the first after 2% of it'),
  },
  'eval': {
    'knn': Field(FLAG, 'evaluate kNN'),
    'linear': Field(FLAG, 'run the linear protocol'),
    'baselines': Field(FLAG, 'the same for raw pixels and for a random network'),
    'baseline_weights': Field(TEXT, 'and for published weights: a file, like --config.encoder'),
    'resize': Field(at_least(0), 'the short side before a centre crop of views.size; 0 is 256/224 of it'),
    'batch_size': Field(at_least(1), 'images evaluated at a time'),
    'k': Field(each(at_least(1), least=1), 'neighbours; the first is the headline'),
    'features': Field(one_of('encoder', 'head'), 'what kNN compares'),
  },
  'linear': {
    'learning_rates': Field(each(ABOVE_0, least=1), 'several form a sweep'),
    'epochs': Field(at_least(1), 'passes over the training images'),
    'batch_size': Field(at_least(1), 'images per step'),
    'momentum': Field(BELOW_1, 'of SGD, without weight decay'),
    'schedule': Field(SCHEDULE, 'how the rate falls'),
    'milestones': Field(MILESTONES, "shares of the training at which 'steps' divides the rate by 10"),
    'normalise': Field(one_of('none', 'l2', 'standardise'), 'the features, where they are large or small'),
    'crop': Field(AREA, 'area of the training crop as a share of the image'),
  },
  'finetune': {
    'learning_rate': Field(NOT_NEGATIVE, 'of the encoder'),
    'head_learning_rate': Field(ABOVE_0, 'of the new linear layer'),
    'epochs': Field(at_least(1), 'passes over the images that are used'),
    'batch_size': Field(at_least(1), 'images per step'),
    'optimizer': Field(one_of('sgd', 'adamw'), 'the optimizer'),
    'momentum': Field(BELOW_1, 'of SGD; β₁ of adamw'),
    'weight_decay': Field(NOT_NEGATIVE, 'of all layers'),
    'layer_decay': Field(number('above 0 and at most 1', lambda value: 0 < value <= 1),
                         "factor on the encoder's rate for each block further from the output"),
    'schedule': Field(SCHEDULE, 'how the rates fall'),
    'milestones': Field(MILESTONES, "shares of the training at which 'steps' divides the rates by 10"),
    'crop': Field(AREA, 'area of the training crop as a share of the image'),
    'labels': Field(number('above 0 and at most 1', lambda value: 0 < value <= 1),
                    'share of the labels to use; 1 is all images'),
  },
  'svm': {
    'costs': Field(each(ABOVE_0, least=1), 'costs, of which cross-validation chooses for each class'),
    'folds': Field(at_least(2), 'of the cross-validation'),
    'max_iterations': Field(at_least(1), 'of one SVM'),
    'labels': Field(TEXT, "CSV file in the folder of each split; '' if its subfolders are the classes"),
  },
  'segmentation': {
    'num_classes': Field(at_least(1, 254), 'C'),
    'classes': Field(each(TEXT), 'names of the classes; () for numbers'),
    'ids': Field(each(at_least(0, 255)), 'the id of each class in the masks; () for 0, 1, 2 …'),
    'ignore': Field(each(at_least(0, 255)), 'ids that are neither learned nor counted'),
    'iterations': Field(at_least(1), 'steps'),
    'batch_size': Field(at_least(1), 'images per step'),
    'learning_rate': Field(ABOVE_0, 'of all layers, at the first step'),
    'momentum': Field(BELOW_1, 'of SGD'),
    'weight_decay': Field(NOT_NEGATIVE, 'of all layers'),
    'power': Field(NOT_NEGATIVE, 'the rate falls as (1 − i / iterations)^power'),
    'crop': Field(SIDES, 'height and width'),
    'scale': Field(RANGE, 'range of the factor on a training image'),
    'short_side': Field(at_least(0), "short side before scaling and in testing; 0 keeps the image's own"),
    'test_size': Field(SIDES, 'canvas that a test image must fit on'),
    'rates': Field(each(at_least(1), least=1), 'dilation of each atrous convolution'),
    'channels': Field(at_least(1), 'of the head'),
    'auxiliary_weight': Field(NOT_NEGATIVE, 'of the auxiliary loss; the main one has weight 1'),
    'report_every': Field(at_least(1), 'iterations between two reports'),
  },
}
_AXIS = Field(Rule('a whole number', _is_whole, 'at least 1, or -1', lambda value: value == -1 or value >= 1),
              'devices along this axis; -1 is all that remain')


def field_of(path: str) -> Field | None:
  """The field of a path such as 'views.size'; None if it is not listed."""
  group, _, name = path.rpartition('.')
  return _AXIS if group == 'mesh' else FIELDS.get(group, {}).get(name)


# Short names of fields, for commands and programs.
SHORT = {'size': 'views.size', 'batch': 'batch_size', 'encoder': 'encoder.name',
         'lr': 'optimizer.learning_rate', 'n': 'num_instances', 'weights': 'encoder.weights'}


def full_names(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings by the whole name of their field: {'size': 96, 'linear': {'epochs': 5}} has 'views.size'."""
  named = {}
  for name, value in settings.items():
    if isinstance(value, Mapping):
      named |= {f'{name}.{field}': setting for field, setting in value.items()}
    else:
      named[SHORT.get(name, name)] = value
  return named


def leaves(config: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """(path, value) of every field of a config; None is an open one."""
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from leaves(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value


def check(config: Any) -> None:
  """Checks every field of a config that is given.

  Raises:
    UserError: naming the first that is not of its type or range, or does not fit another.
  """
  for path, value in leaves(config):
    field = field_of(path)
    if field and value is not None and (mistake := field.rule.mistake(value)):
      raise UserError(f'config.{path} is {value!r}{mistake}')
  epochs, optimizer = config.get('epochs'), config.get('optimizer')
  if epochs and optimizer and (optimizer.get('warmup_epochs') or 0) > epochs:
    raise UserError(f'config.optimizer.warmup_epochs is {optimizer.warmup_epochs:g}: it must be at most '
                    f'config.epochs, {epochs}.')


def describe(config: Any) -> str:
  """All fields with their values, types and ranges, and meanings, a line each."""
  rows = []
  for path, value in leaves(config):
    field = field_of(path)
    given = 'auto' if value is None else repr(value) if isinstance(value, (str, tuple)) else str(value)
    rows.append((f'--config.{path}={given}', field.rule.in_words() if field else '',
                 field.meaning if field else ''))
  widths = [min(_WIDEST, max(len(row[column]) for row in rows)) for column in range(2)]
  return '\n'.join('  '.join((setting.ljust(widths[0]), words.ljust(widths[1]), meaning)).rstrip()
                   for setting, words, meaning in rows)
