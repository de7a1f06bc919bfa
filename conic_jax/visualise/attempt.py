"""Pictures that may fail: none of them ends what they are of."""
from collections.abc import Callable
from pathlib import Path

from conic_jax.errors import Stopped, UserError
from conic_jax.terminal import printable

Draw = Callable[[Path], None]


def attempt(draw: Draw, out: Path, say: Callable[[str], None]) -> bool:
  """Draws a picture; where that fails, whatever the reason, one line says so.

  Args:
    draw: draws the picture to a file.
    out: the file.
    say: shows a line.

  Returns:
    Whether the picture was drawn.

  Raises:
    Stopped: if a signal arrives meanwhile.
  """
  try:
    draw(out)
  except Stopped:
    raise
  except Exception as error:
    say(f'Could not draw {reason(out.name)} ({reason(error)}).')
    return False
  return True


def insist(draw: Draw, out: Path, flag: str) -> None:
  """Draws the picture that a command is for.

  Args:
    draw: draws the picture to a file.
    out: the file.
    flag: the flag that names it.

  Raises:
    UserError: if it cannot be drawn or written.
    Stopped: if a signal arrives meanwhile.
  """
  try:
    draw(out)
  except (Stopped, UserError):
    raise
  except OSError as error:
    raise UserError(f'{flag}={out} cannot be written ({reason(error)}): give another {flag}.') from error
  except Exception as error:
    raise UserError(f'{flag}={out} cannot be drawn ({reason(error)}): try fewer or other images.') from error


def reason(error: Exception | str) -> str:
  """An error as the part of a line that stands in brackets, printable whatever file names are in it."""
  text = ' '.join(str(error).split()).removesuffix('.')
  if not isinstance(error, (str, OSError, UserError)):
    text = f'{type(error).__name__}: {text}' if text else type(error).__name__
  return printable(text)
