"""The user's home: ~ in paths, which a shell leaves as it is in --config.run=~/runs, and the cache folder."""
import os
import re
from pathlib import Path
from typing import Any

from conic_jax.fields import leaves

_PATH = re.compile(r'(--[\w.-]+=)?(~[^/]*(?:/.*)?)', re.DOTALL)


def cache_folder() -> Path:
  """The folder for what can be made or fetched again."""
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'conic_jax'


def expand_argument(argument: str) -> str:
  """Expands ~ at the start of an argument, or of the value of a flag."""
  match = _PATH.fullmatch(argument)
  return (match[1] or '') + os.path.expanduser(match[2]) if match else argument


def expand_config(config: Any) -> Any:
  """A copy of a config in which ~ is expanded at the start of every text; the config if there is none."""
  expanded = {path: os.path.expanduser(value) for path, value in leaves(config)
              if isinstance(value, str) and value.startswith('~')}
  if not expanded:
    return config
  copy = config.copy_and_resolve_references()
  copy.update_from_flattened_dict(expanded)
  return copy
