"""~ in paths that a user gives, which a shell leaves as it is in --config.run=~/runs."""
import os
import re
from typing import Any

from ml_collections import ConfigDict

_PATH = re.compile(r'(--[\w.-]+=)?(~[^/]*(?:/.*)?)', re.DOTALL)


def expand_argument(argument: str) -> str:
  """Expands ~ at the start of an argument, or of the value of a flag."""
  match = _PATH.fullmatch(argument)
  return (match[1] or '') + os.path.expanduser(match[2]) if match else argument


def expand_config(config: Any) -> Any:
  """A copy of a config in which ~ is expanded at the start of every text; the config if there is none."""
  if not any(_leaves(config)):
    return config
  copy = config.copy_and_resolve_references()
  for node, name in _leaves(copy):
    node[name] = os.path.expanduser(node[name])
  return copy


def _leaves(node):
  """(group, field) of every text that starts with ~."""
  for name, value in node.items():
    if isinstance(value, ConfigDict):
      yield from _leaves(value)
    elif isinstance(value, str) and value.startswith('~'):
      yield node, name
