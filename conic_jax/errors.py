"""How a command ends early: errors that a user can cause, and being told to stop."""
import signal


class UserError(Exception):
  """Something the user can mend; `main` prints the sentence alone, without a traceback."""


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
