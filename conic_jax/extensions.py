"""User-defined methods, sources, encoders, evaluations and export targets, loaded by module name."""
import importlib
import re
from types import ModuleType
from typing import Any

from conic_jax.errors import UserError

_DOTTED = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)+')


def own_module(name: str) -> ModuleType | None:
  """The module that a setting names, such as 'mine.vicreg'; None for a built-in name, which has no dot.

  Raises:
    UserError: if there is no such module.
  """
  if not _DOTTED.fullmatch(name):
    return None
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name is None or not f'{name}.'.startswith(f'{error.name}.'):
      raise  # The module exists, but something it imports does not.
    raise UserError(f"There is no module '{name}': give the name that Python imports it by, from the folder "
                    'where the command is started.') from error


def own_part(name: str, part: str) -> Any:
  """What a module of the user's own must have, such as `make`; None for a built-in name.

  Raises:
    UserError: if there is no such module, or it lacks the part.
  """
  module = own_module(name)
  if module is None:
    return None
  if not hasattr(module, part):
    raise UserError(f"The module '{name}' has no '{part}': docs/extending.md says what it must have.")
  return getattr(module, part)
