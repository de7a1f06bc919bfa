"""Exceptions that end a command early: user errors, help, and stop signals."""
import signal
from collections.abc import Sequence


class UserError(Exception):
  """An error that the user can fix; commands print only its message, without a traceback."""


def listed(items: Sequence, most: int = 5) -> str:
  """The first `most` items as text, for an error message."""
  return ', '.join(map(str, items[:most])) + (' …' if len(items) > most else '')


def first_line(error: BaseException, most: int | None = None) -> str:
  """What an error says: its first line, at most so many characters of it, or its kind if it says nothing."""
  return (str(error).strip() or type(error).__name__).splitlines()[0][:most]


class Help(Exception):
  """The text that --help prints."""


class Stopped(Exception):
  """The run was stopped by a signal and has saved what it could.

  Attributes:
    exit_code: the shell's exit code for a command ended by this signal.
  """

  def __init__(self, received: signal.Signals, outcome: str):
    self.exit_code = 128 + received
    super().__init__(f'{received.name}: {outcome}. Run the same command again to go on.')
