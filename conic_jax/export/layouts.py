"""Where an encoder lies in a file of weights: under which prefix, and under which names."""
import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from conic_jax.errors import UserError

# Words in the prefix of a copy that follows the network that learns.
_COPIES = {'k', 'key', 'momentum', 'target', 'ema', 'slow'}
_FIRST = 'layer1.0.conv1.weight'
_FIRST_OF_LIST = re.compile(r'(?P<prefix>(?:.*\.)?)(?P<number>\d+)\.0\.conv1\.weight')
_OF_RESNET = re.compile(r'(?:conv1|bn1|layer\d+)\.')
_MOST_LISTED = 8
# What lies beside an encoder under the same prefix, and is no part of it.
_BESIDE = re.compile(
  r'(?:heads?|fc|classifier|pooler|pre_logits|decoder_?\w*|mask_token)\b(?!\.norm\.).*')


@dataclasses.dataclass(frozen=True)
class Spelling:
  """The names of a kind of encoder in some library.

  Attributes:
    mark: a name that every such encoder has.
    rules: pairs of a pattern of names, and timm's name for them; what no pattern matches keeps its name.
  """
  mark: str
  rules: tuple[tuple[str, str], ...]

  def timm(self, name: str) -> str | None:
    """timm's name for an array; None if it is of a head."""
    for pattern, new in self.rules:
      if match := re.fullmatch(pattern, name):
        return match.expand(new)
    return None if _BESIDE.fullmatch(name) else name


def spelled(arrays: Mapping[str, np.ndarray], spellings: Iterable[Spelling], path: Path, kind: str
            ) -> dict[str, np.ndarray] | None:
  """The arrays of an encoder by timm's names, without heads; of several, as `resnet_of` chooses.

  Args:
    arrays: of a file, by name.
    spellings: how its kind is spelled.
    path: the file, for messages.
    kind: the kind, for messages.

  Returns:
    None if there is none.

  Raises:
    UserError: if there are several with nothing to choose by.
  """
  found = {}
  for spelling in spellings:
    for prefix in (name.removesuffix(spelling.mark) for name in arrays if name.endswith(spelling.mark)):
      if not prefix or prefix.endswith('.'):
        inside = {name: spelling.timm(name.removeprefix(prefix))
                  for name in arrays if name.startswith(prefix)}
        found[prefix] = {old: new for old, new in inside.items() if new}
  return {new: arrays[old] for old, new in _chosen(found, path, kind)[1].items()} if found else None


def resnet_of(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
  """The arrays of the ResNet in a file under torchvision's names, without heads and counters.

  It may lie under any prefix, as of DataParallel, torch.compile, a LightningModule, MoCo or VISSL, or be a
  torch.nn.Sequential of torchvision's layers, as lightly's. Of the network that learns and a copy that
  follows it (MoCo's key encoder, BYOL's target) the first is taken, of DINO's student and teacher the
  teacher, which DINO evaluates.

  Raises:
    UserError: if there is none, or several with nothing to choose by.
  """
  found = {**_named(arrays), **_numbered(arrays)}
  if not found:
    raise UserError(f'{path} is no ResNet that is known here: it has no conv1.weight beside a {_FIRST}, '
                    'under any prefix; nor is it a vision transformer or a ConvNeXt. Its names begin with '
                    f'{_starts(arrays)}.')
  prefix, chosen = _chosen(found, path, 'ResNets')
  if 'conv1.weight' not in chosen.values():
    raise UserError(f"{path} is no ResNet of torchvision's names: it has no {prefix}conv1.weight.")
  return {new: arrays[old] for old, new in chosen.items() if not old.endswith('num_batches_tracked')}


def _chosen(found: Mapping[str, dict[str, str]], path: Path, kind: str) -> tuple[str, dict[str, str]]:
  """The prefix of the network that learns, with its names; raises a UserError if several may be."""
  ranks = {prefix: _rank(prefix) for prefix in found}
  best = [prefix for prefix, rank in ranks.items() if rank == min(ranks.values())]
  if len(best) > 1:
    raise UserError(f'{path} holds {len(best)} {kind}, under {", ".join(best)}: save the state_dict() of '
                    'one.')
  return best[0], found[best[0]]


def _named(names: Iterable[str]) -> dict[str, dict[str, str]]:
  """By prefix, torchvision's name for each name of a ResNet whose layers have names."""
  found = {}
  for prefix in (name.removesuffix(_FIRST) for name in names if name.endswith(_FIRST)):
    inside = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    found[prefix] = {old: _shortcut(new) for old, new in inside.items() if _OF_RESNET.match(new)}
  return found


def _numbered(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, str]]:
  """The same of ResNets whose layers are numbered: a convolution, a batch norm, and the stages."""
  prefixes = {match['prefix'] for match in map(_FIRST_OF_LIST.fullmatch, arrays) if match}
  found = {}
  for prefix in prefixes:
    parts = {name: name.removeprefix(prefix).partition('.') for name in arrays if name.startswith(prefix)}
    parts = {name: (int(number), rest) for name, (number, _, rest) in parts.items() if number.isdigit()}
    stages = sorted({number for number, rest in parts.values() if rest == '0.conv1.weight'})
    new = {number: f'layer{stage}' for stage, number in enumerate(stages, 1)}
    new |= {number: 'bn1' for number, rest in parts.values() if rest == 'running_mean'}
    new |= {number: 'conv1' for name, (number, rest) in parts.items()
            if rest == 'weight' and arrays[name].ndim == 4}
    found[prefix] = {name: _shortcut(f'{new[number]}.{rest}') for name, (number, rest) in parts.items()
                     if number in new}
  return found


def _shortcut(name: str) -> str:
  """The name with torchvision's word for the shortcut."""
  return re.sub(r'^(layer\d+\.\d+)\.shortcut\.', r'\1.downsample.', name)


def _rank(prefix: str) -> tuple[bool, bool]:
  words = set(re.split(r'[._]', prefix))
  return bool(words & _COPIES), 'student' in words


def _starts(names: Iterable[str]) -> str:
  """How names begin, each start once, as in 'blocks., head.'."""
  starts = list(dict.fromkeys(name.partition('.')[0] + ('.' if '.' in name else '') for name in names))
  return ', '.join(starts[:_MOST_LISTED]) + (' …' if len(starts) > _MOST_LISTED else '')
