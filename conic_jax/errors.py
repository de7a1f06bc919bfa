"""How a command ends early: errors that a user can cause, and being told to stop."""
import signal
from collections.abc import Sequence


class UserError(Exception):
  """Something the user can mend; `main` prints the sentence alone, without a traceback."""


def listed(items: Sequence, most: int = 5) -> str:
  """The first of the things that an error is about, for its sentence."""
  return ', '.join(map(str, items[:most])) + (' …' if len(items) > most else '')


class Help(Exception):
  """What the command prints when it is asked how it is used."""


class Stopped(Exception):
  """The run was told to stop by a signal and has saved what it could.

  Attributes:
    exit_code: the shell's for a command ended by the signal.
  """

  def __init__(self, received: signal.Signals, outcome: str):
    self.exit_code = 128 + received
    super().__init__(f'{received.name}: {outcome}. Run the same command again to go on.')
