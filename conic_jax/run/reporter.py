"""Output of a run's figures: metrics.jsonl, TensorBoard, and the terminal."""
import contextlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from conic_jax.errors import UserError, listed
from conic_jax.run.appended import Appended
from conic_jax.run.claim import reason
from conic_jax.run.events import Events
from conic_jax.run.loggers import Logger
from conic_jax.terminal import print_line


def read_reports(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
  """The reports of a metrics.jsonl, and the numbers of its lines that are none, from 1.

  A last line without an end was cut short by a crash, and is in neither.
  """
  reports, damaged = [], []
  lines = path.read_text(errors='replace').split('\n') if path.exists() else ['']
  for number, line in enumerate(lines[:-1], start=1):
    try:
      report = json.loads(line)
    except ValueError:
      report = None
    if isinstance(report, dict) and isinstance(report.get('step'), int):
      reports.append(report)
    else:
      damaged.append(number)
  return reports, damaged


def cut_back(path: Path, step: int) -> tuple[list[dict[str, Any]], list[int]]:
  """Drops the reports after `step`, and what a crash left half-written.

  Returns:
    The reports that are left, and the numbers of the lines that cannot be read; a file with such lines is
    kept under another name.
  """
  reports, damaged = read_reports(path)
  reports = [report for report in reports if report['step'] <= step]
  if path.exists():
    if damaged:
      shutil.copyfile(path, path.with_suffix('.damaged.jsonl'))
    temporary = path.with_suffix('.tmp')
    temporary.write_text(''.join(json.dumps(report) + '\n' for report in reports))
    temporary.replace(path)
  return reports, damaged


class Reporter:
  """Writes the reports of one run; only the first process of a cluster writes anything.

  On a terminal it shows a progress bar with the time left, elsewhere one plain line per report. A report that
  cannot be written, as on a full disk, does not stop the training: a line says so, and the next one tries
  again.

  Attributes:
    loggers: services that also get the reports; they must not raise.
    reports: all of the run so far, including those from before a resume; only in the first process.
    failure: why the latest reports are not in metrics.jsonl; None if they are.

  Raises:
    UserError: if the files cannot be written at the start.
  """

  def __init__(self, run: Path, *, first_step: int, total_steps: int, active: bool = True):
    self._active, self._total = active, total_steps
    self.loggers: Sequence[Logger] = ()
    self.failure: str | None = None
    self.reports: list[dict[str, Any]] = []
    self._unwritten, self._failing = b'', False
    self._bar = None
    if not active:
      return
    path = run / 'metrics.jsonl'
    try:
      self.reports, damaged = cut_back(path, first_step or -1)  # Reports at step 0 are made again.
      with contextlib.ExitStack() as opened:
        self._metrics = opened.enter_context(contextlib.closing(Appended(path)))
        self._events = opened.enter_context(contextlib.closing(Events(run / 'tensorboard', first_step)))
        self._files = opened.pop_all()
    except OSError as error:
      raise UserError(f'The reports of {run} cannot be written ({error.filename or path}: {reason(error)}): '
                      'free room, or give config.run another folder.') from error
    if sys.stderr.isatty():
      self._bar = tqdm(total=total_steps, initial=first_step, unit='step', dynamic_ncols=True)
    if damaged:
      self.say(f'{path} has damaged lines ({listed(damaged)}), which are left out; all of it is kept in '
               f"{path.with_suffix('.damaged.jsonl')}.")

  def advance(self, step: int) -> None:
    """Moves the progress bar."""
    if self._bar is not None:
      with self._bar_or_none():
        self._bar.update(step - self._bar.n)

  def report(self, step: int, epoch: float, figures: Mapping[str, float | str]) -> None:
    """Records figures and prints those that are numbers on one line; does nothing without figures."""
    if self._active and figures:
      self.record(step, epoch, figures)
      numbers = {name: value for name, value in figures.items() if not isinstance(value, str)}
      values = '  '.join(f'{name} {value:.4g}' for name, value in numbers.items())
      self.say(f'step {step}/{self._total}  epoch {epoch:.2f}  {values}')

  def record(self, step: int, epoch: float, figures: Mapping[str, float | str]) -> None:
    """Writes one report to metrics.jsonl and TensorBoard.

    What cannot be written to metrics.jsonl is written with the next report; an event is dropped.

    Args:
      step: steps done.
      epoch: epochs done.
      figures: scalars and words by name.
    """
    if not self._active:
      return
    self.reports.append({'step': step, 'epoch': round(epoch, 4), **figures})
    self._unwritten += json.dumps(self.reports[-1]).encode() + b'\n'
    lost = []
    try:
      self._metrics.append(self._unwritten)
      self._unwritten, self.failure = b'', None
    except OSError as error:
      self.failure = reason(error)
      lost.append(f'metrics.jsonl: {self.failure}')
    try:
      self._events.write(step, figures)
    except OSError as error:
      lost.append(f'TensorBoard: {reason(error)}')
    if lost and not self._failing:
      self.say(f'The report of step {step} could not be written ({"; ".join(lost)}); the training goes on.')
    self._failing = bool(lost)
    for logger in self.loggers:
      logger.report(self.reports[-1])

  def say(self, line: str) -> None:
    """Prints a line, above the progress bar if there is one."""
    if self._active:
      if self._bar is not None:
        with self._bar_or_none():
          self._bar.write(line, file=sys.stderr)
      else:
        print_line(line)

  def close(self) -> None:
    """Closes the files and the bar."""
    if self._active:
      self._files.close()
      if self._bar is not None:
        with self._bar_or_none():
          self._bar.close()

  @contextlib.contextmanager
  def _bar_or_none(self):
    """Gives up the progress bar if its terminal is gone."""
    try:
      yield
    except OSError:
      self._bar = None
