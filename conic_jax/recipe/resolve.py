"""Fills the open fields of a config, with a reason for every choice."""
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from conic_jax.buckets.run_folder import RunFolder
from conic_jax.data import sources
from conic_jax.errors import UserError
from conic_jax.recipe.facts import Facts
from conic_jax.recipe.rules import RULES, UNUSED
from conic_jax.run.json_file import read_json
from conic_jax.run.whole import steps_in

AUTO = 'auto'
# Chosen before the facts are known, since they determine the images.
SPLITS = ('data.train', 'data.test')
_HELD_OUT = ('val', 'validation', 'test')


@dataclasses.dataclass(frozen=True)
class Choice:
  """The value chosen for an open field, and the reason."""
  field: str
  value: Any
  reason: str


def is_open(config: Any, field: str) -> bool:
  """Whether the config has this field and leaves it open."""
  try:
    value = _get(config, field)
  except (KeyError, AttributeError):
    return False
  return value is None or (value == AUTO and (field in RULES or field in SPLITS))


def open_fields(config: Any) -> list[str]:
  """All open fields of a config."""
  return [field for field in _fields(config) if is_open(config, field)]


def resolve(config: Any, facts: Facts) -> tuple[Any, list[Choice]]:
  """Gives every open field a value by its rule; fields that are set never change.

  Args:
    config: the whole config.
    facts: facts about the images and the machine.

  Returns:
    The config without open fields, and the choices in the order they were made.

  Raises:
    UserError: if an open field has no rule, or a given value makes one impossible.
  """
  check_open(config)
  resolved = config.copy_and_resolve_references()
  choices = []
  for field, rule in RULES.items():
    if is_open(config, field):
      value, reason = rule(resolved, facts)
      _set(resolved, field, value)
      choices.append(Choice(field, value, reason))
  return resolved, choices


def check_open(config: Any) -> None:
  """Raises a `UserError` if an open field has no rule."""
  for field in open_fields(config):
    if field not in RULES and field not in SPLITS:
      can = ', '.join(field for field in RULES if _has(config, field))
      raise UserError(f'config.{field} has no automatic value: give it one. These have: {can}.')


def apply(config: Any, choices: list[Choice]) -> Any:
  """The config with these choices applied."""
  resolved = config.copy_and_resolve_references()
  for choice in choices:
    _set(resolved, choice.field, choice.value)
  return resolved


def describe(choices: list[Choice], what: str = 'these images and this machine') -> str:
  """The choices that play a part as printable lines: field, value, reason; '' if there are none."""
  shown = [(choice.field, str(choice.value) or '(empty)', choice.reason) for choice in choices
           if choice.reason != UNUSED]
  if not shown:
    return ''
  width = max(len(field) for field, _, _ in shown)
  lines = [f'  {field:{width}}  {value:14}  {reason}' for field, value, reason in shown]
  return '\n'.join((f'Chosen for {what} (give any as --config.FIELD=VALUE):', *lines))


def split_folders(config: Any) -> list[Choice]:
  """Chooses open `data.train` and `data.test`: train with val or test, or all images."""
  data, asked = config.data, [field for field in SPLITS if is_open(config, field)]
  if not asked:
    return []
  inside = sources.splits_of(data, ('train', *_HELD_OUT))
  held_out = next((name for name in _HELD_OUT if name in inside), '')
  train, test = data.train, data.test
  if SPLITS[0] in asked:
    apart = 'train' in inside and (held_out or (SPLITS[1] not in asked and test))
    train = 'train' if apart else ''
  if SPLITS[1] in asked:
    test = held_out if train == 'train' else ''
  reason = 'images to hold out are there' if test else 'all images that are there'
  found = {SPLITS[0]: Choice(SPLITS[0], train, reason),
           SPLITS[1]: Choice(SPLITS[1], test, reason if test else 'no images to hold out')}
  return [found[field] for field in asked]


def has_begun(run: RunFolder) -> bool:
  """Whether a run has a checkpoint."""
  return any(steps_in(run.large / name) for name in ('checkpoints', 'before_training'))


def stored(run: RunFolder, config: Any) -> list[Choice]:
  """The stored values of open fields with which a run began; they are kept. Empty if it has not begun.

  A run has begun if it has a checkpoint. Before that, its choices are kept as long as all given settings are
  the same, apart from fields that did not exist yet.

  Args:
    run: folder of the run.
    config: config with open fields.

  Raises:
    UserError: if the run has begun and its config.json cannot be read.
  """
  begun, written = has_begun(run), _read(run.local / 'config.json')
  if written is None:
    if begun and (chosen := open_fields(config)):
      raise UserError(f'{run}/config.json cannot be read, which has the settings that this run chose: bring '
                      f'it back from a copy, or give {", ".join(f"config.{field}" for field in chosen)}.')
    return []
  given = [field for field in _fields(config) if not is_open(config, field)]
  if not begun and any(_has(written, field) and _value(_get(written, field)) != _value(_get(config, field))
                       for field in given):
    return []
  reasons = dict(written['recipe']['reasons']) if 'recipe' in written else {}
  return [Choice(field, _value(_get(written, field)), reasons.get(field, 'as before'))
          for field in open_fields(config) if _find(written, field) is not None]


def _read(path: Path) -> dict[str, Any] | None:
  """A config.json that a run wrote; None if it is missing or damaged."""
  written = read_json(path)
  try:
    if written is None or not isinstance(written['views'], dict):
      return None
    dict(written['recipe']['reasons'] if 'recipe' in written else {})
  except (ValueError, TypeError, KeyError):
    return None
  return written


def _find(written: Any, field: str) -> Any:
  return _get(written, field) if _has(written, field) else None


def _value(value: Any) -> Any:
  return tuple(map(_value, value)) if isinstance(value, (list, tuple)) else value


def _fields(node: Any, prefix: str = '') -> Iterator[str]:
  for name, value in node.items():
    if isinstance(value, ConfigDict):
      yield from _fields(value, f'{prefix}{name}.')
    else:
      yield prefix + name


def _get(config: Any, field: str) -> Any:
  for name in field.split('.'):
    config = config[name]
  return config


def _has(config: Any, field: str) -> bool:
  try:
    _get(config, field)
  except (KeyError, TypeError):
    return False
  return True


def _set(config: Any, field: str, value: Any) -> None:
  *groups, name = field.split('.')
  for group in groups:
    config = config[group]
  with config.ignore_type():
    config[name] = value
