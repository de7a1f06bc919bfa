"""Output of a run's figures: metrics.jsonl, TensorBoard, and the terminal."""
import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm


def cut_back(path: Path, step: int) -> None:
  """Drops the reports after `step`, and a line that a crash left half-written."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text().splitlines():
    try:
      report = json.loads(line)
    except json.JSONDecodeError:
      break
    if report['step'] <= step:
      kept.append(line + '\n')
  temporary = path.with_suffix('.tmp')
  temporary.write_text(''.join(kept))
  temporary.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
  """Writes a JSON file atomically."""
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_text(json.dumps(content, indent=2) + '\n')
  temporary.replace(path)


class Reporter:
  """Writes the reports of one run; only the first process of a cluster writes anything.

  On a terminal it shows a progress bar with the time left, elsewhere one plain line per report. A failed
  write, as on a full disk, does not stop the training: `failure` holds its message.

  Attributes:
    reports: all of the run so far, including those from before a resume; only in the first process.
    failure: the message of the last failed write.
  """

  def __init__(self, run: Path, *, first_step: int, total_steps: int, active: bool = True):
    self._active, self._total = active, total_steps
    self.failure: str | None = None
    self.reports: list[dict[str, Any]] = []
    if not active:
      return
    path = run / 'metrics.jsonl'
    cut_back(path, first_step or -1)  # Reports at step 0 are made again.
    if path.exists():
      self.reports += map(json.loads, path.read_text().splitlines())
    self._file = path.open('a')
    self._tensorboard = SummaryWriter(str(run / 'tensorboard'), purge_step=first_step + 1)
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm(total=total_steps, initial=first_step, unit='step', dynamic_ncols=True)

  def advance(self, step: int) -> None:
    """Moves the progress bar."""
    if self._active and self._bar is not None:
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

    Args:
      step: steps done.
      epoch: epochs done.
      figures: scalars and words by name.
    """
    if not self._active:
      return
    self.reports.append({'step': step, 'epoch': round(epoch, 4), **figures})
    try:
      print(json.dumps(self.reports[-1]), file=self._file, flush=True)
      for name, value in figures.items():
        if isinstance(value, str):
          self._tensorboard.add_text(name, value, step)
        else:
          self._tensorboard.add_scalar(name, value, step)
    except OSError as error:
      self.failure = str(error)

  def say(self, line: str) -> None:
    """Prints a line, above the progress bar if there is one."""
    if self._active:
      if self._bar is not None:
        self._bar.write(line, file=sys.stderr)
      else:
        print(line, flush=True)

  def close(self) -> None:
    """Closes the files and the bar."""
    if self._active:
      with contextlib.suppress(OSError):
        self._file.close()
        self._tensorboard.close()
      if self._bar is not None:
        self._bar.close()
