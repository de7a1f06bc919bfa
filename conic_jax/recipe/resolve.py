"""From a config with open fields to one without, and the reason of every choice."""
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from conic_jax.errors import UserError
from conic_jax.recipe.facts import Facts
from conic_jax.recipe.rules import RULES

AUTO = 'auto'
_HELD_OUT = ('val', 'validation', 'test')


@dataclasses.dataclass(frozen=True)
class Choice:
  """A field that was open, its value, and why it has it."""
  field: str
  value: Any
  reason: str


def is_open(config: Any, field: str) -> bool:
  """Whether the config has the field and leaves it open."""
  try:
    value = _get(config, field)
  except (KeyError, AttributeError):
    return False
  return value is None or (value == AUTO and field in RULES)


def open_fields(config: Any) -> list[str]:
  """All open fields of a config."""
  return [field for field in _fields(config) if is_open(config, field)]


def resolve(config: Any, facts: Facts) -> tuple[Any, list[Choice]]:
  """Gives every open field a value, by its rule; a field that has one is never changed.

  Args:
    config: the whole config.
    facts: of the images and the machine.

  Returns:
    The config without open fields, and the choices in the order in which they were made.

  Raises:
    UserError: where a field is open that has no rule, or a value that was given rules one out.
  """
  resolved = config.copy_and_resolve_references()
  for field in open_fields(config):
    if field not in RULES:
      can = ', '.join(field for field in RULES if _has(config, field))
      raise UserError(f'config.{field} has no automatic value: give it one. These have: {can}.')
  choices = []
  for field, rule in RULES.items():
    if is_open(config, field):
      value, reason = rule(resolved, facts)
      _set(resolved, field, value)
      choices.append(Choice(field, value, reason))
  return resolved, choices


def apply(config: Any, choices: list[Choice]) -> Any:
  """The config with these values."""
  resolved = config.copy_and_resolve_references()
  for choice in choices:
    _set(resolved, choice.field, choice.value)
  return resolved


def describe(choices: list[Choice]) -> str:
  """The choices as lines to print: field, value, reason."""
  width = max(len(choice.field) for choice in choices)
  lines = [f'  {choice.field:{width}}  {choice.value!s:14}  {choice.reason}' for choice in choices]
  return '\n'.join(('Chosen for these images and this machine (give any as --config.FIELD=VALUE):', *lines))


def split_folders(config: Any) -> None:
  """Decides open `data.train` and `data.test`, in place: a folder's train/ and val/ or test/, or all."""
  data = config.data
  entries = set()
  folder = os.path.expanduser(data.dir)
  if data.name == 'folder' and os.path.isdir(folder):
    entries = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
  held_out = next((name for name in _HELD_OUT if name in entries), '') if 'train' in entries else ''
  if is_open(config, 'data.train'):
    _set(config, 'data.train', 'train' if held_out else '')
  if is_open(config, 'data.test'):
    _set(config, 'data.test', held_out if data.train == 'train' else '')


def stored(run: Path, config: Any, num_images: int) -> list[Choice] | None:
  """The choices that a run was begun with, which a resumed one keeps; None where it has not begun.

  Args:
    run: its folder.
    config: with open fields.
    num_images: N; the choices for other images are not taken.
  """
  try:
    written = json.loads((run / 'config.json').read_text())
    if written['recipe']['num_images'] != num_images:
      return None
    reasons = dict(written['recipe']['reasons'])
    return [Choice(field, _value(_get(written, field)), reasons.get(field, 'as given when the run began'))
            for field in open_fields(config)]
  except (OSError, ValueError, KeyError):
    return None


def _value(value: Any) -> Any:
  return tuple(map(_value, value)) if isinstance(value, list) else value


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
  except KeyError:
    return False
  return True


def _set(config: Any, field: str, value: Any) -> None:
  *groups, name = field.split('.')
  for group in groups:
    config = config[group]
  with config.ignore_type():
    config[name] = value
