"""Services that a run also reports to, such as Weights & Biases; none of them can stop it."""
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from conic_jax.errors import first_line
from conic_jax.run.json_file import read_json, write_json

Say = Callable[[str], None]
# Which run of each service a run's folder is, so that a run that goes on is the same there.
FILE = 'loggers.json'


class Logger(Protocol):
  """A service that is told what a run reports. Whatever it raises ends its reports, not the training."""

  def report(self, report: Mapping[str, Any]) -> None:
    """Takes one line of metrics.jsonl: the step, the epoch, and scalars and words by name."""

  def conclude(self, summary: Mapping[str, Any], pictures: Sequence[Path]) -> None:
    """Takes summary.json and the PNGs of a run that has ended."""

  def close(self) -> None:
    """Sends what is not sent yet, in bounded time."""


# Opens a logger and gives its id: of a setting, the run's folder, the content of config.json, the id that the
# run had before ('' for none), and what shows a line.
Open = Callable[[str, Path, Mapping[str, Any], str, Say], tuple[Logger, str]]


class Guarded:
  """A logger whose failures are told in one line; after the first, nothing more is asked of it."""

  def __init__(self, name: str, logger: Logger, say: Say):
    self._name, self._logger, self._say = name, logger, say
    self._failed = False

  def report(self, report: Mapping[str, Any]) -> None:
    """As `Logger.report`."""
    self._attempt(lambda: self._logger.report(report))

  def conclude(self, summary: Mapping[str, Any], pictures: Sequence[Path]) -> None:
    """As `Logger.conclude`."""
    self._attempt(lambda: self._logger.conclude(summary, pictures))

  def close(self) -> None:
    """As `Logger.close`."""
    self._attempt(self._logger.close)

  def _attempt(self, action):
    if not self._failed:
      try:
        action()
      except Exception as error:  # Anything, from packages that are not ours.
        self._failed = True
        self._say(failure(self._name, error))


def open_loggers(services: Mapping[str, tuple[str, Open]], folder: Path, description: Mapping[str, Any],
                 say: Say) -> list[Guarded]:
  """Opens loggers; one that cannot be opened is told in a line and left out.

  Args:
    services: the setting of each service by its name, and what opens it; '' for a service that is not used.
    folder: the run's folder, which keeps the ids of its runs.
    description: the content of config.json.
    say: shows a line.
  """
  ids, opened = read_json(folder / FILE) or {}, []
  for name, (setting, open_logger) in services.items():
    if setting:
      try:
        logger, ids[name] = open_logger(setting, folder, description, str(ids.get(name, '')), say)
        opened.append(Guarded(name, logger, say))
        write_json(folder / FILE, ids)
      except Exception as error:  # Anything, from packages that are not ours.
        say(failure(name, error))
  return opened


def failure(name: str, error: Exception) -> str:
  """One line about a logger that failed."""
  reason = first_line(error)
  if isinstance(error, ModuleNotFoundError):
    reason += f"; pip install 'conic_jax[{name}]' brings it"
  return f'{name} gets no reports from here on ({reason}); the training goes on.'
