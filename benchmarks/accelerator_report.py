"""What `benchmarks.accelerator` found: rows of a table, failures among them, and their picture."""
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from conic_jax.hardware import program_cost
from conic_jax.hardware.topologies import Topology
from conic_jax.plan import roofline
from conic_jax.visualise import style

CORRECTNESS = 'correctness'
_LONGEST = 300  # Letters of an error.


class Setting(NamedTuple):
  """What is measured.

  Attributes:
    device: the one that everything runs on.
    where: it in the table of hardware; None if it is not there.
    checked, timed: (N, M, D) of the head, for its correctness and for its time.
    preset, batch_size, num_instances: of the train step: of configs/conic.py, images, N.
    smaller: whether its encoder has one block.
    repeats: of everything timed.
  """
  device: Any
  where: Topology | None
  checked: tuple[int, int, int]
  timed: tuple[int, int, int]
  preset: str
  batch_size: int
  num_instances: int
  smaller: bool
  repeats: int

  @property
  def bandwidth(self) -> float:
    """Bytes/s of the device's memory; 0 if unknown."""
    return self.where.hardware.bandwidth if self.where else 0


class Row(NamedTuple):
  """A line of the table.

  Attributes:
    part, name: what was measured.
    found, against: the figure, and what it is compared with.
    ratio: of the two; None if they are not to be compared.
    passed: False for an error, or a result that is wrong.
  """
  part: str
  name: str
  found: str
  against: str = ''
  ratio: float | None = None
  passed: bool = True


class Report:
  """The rows so far.

  Args:
    seconds: from now; what would start later is left out.
  """

  def __init__(self, seconds: float = float('inf')) -> None:
    self.rows: list[Row] = []
    self._last_start = time.perf_counter() + seconds

  def add(self, *values: Any, **named: Any) -> None:
    """Adds and prints a row."""
    self.rows.append(Row(*values, **named))
    print(_line(self.rows[-1]), flush=True)

  def attempt(self, part: str, name: str, function: Callable[[], Any]) -> Any:
    """What a function returns; None, and a row that says why, if it fails or no time is left."""
    if time.perf_counter() > self._last_start:
      self.add(part, name, 'not measured', 'no time left', passed=part != CORRECTNESS)
      return None
    try:
      return function()
    except Exception as error:
      first = next(iter(str(error).splitlines()), '')[:_LONGEST]
      self.add(part, name, f'{type(error).__name__}: {first}', passed=False)
      return None

  @property
  def is_correct(self) -> bool:
    """Whether there were results to check, and none was wrong or failed."""
    checked = [row.passed for row in self.rows if row.part == CORRECTNESS]
    return bool(checked) and all(checked)


# ---- Times --------------------------------------------------------------------------------------


def planned_seconds(text: str, where: Topology | None) -> float | None:
  """The least time of a compiled program by the plan; None for unknown hardware."""
  if where is None:
    return None
  times = roofline(program_cost.chosen(program_cost.analyse(text), max), where)
  return times['kernel_seconds'] + times['communication_seconds'] if times else None


def add_plan(report: Report, name: str, seconds: float, text: str, where: Topology | None) -> None:
  """Adds a row for the plan's time of a program against the measured one."""
  planned = planned_seconds(text, where)
  if planned is None:
    report.add('plan', name, milliseconds(seconds), 'the bandwidth of this device is unknown')
  else:
    report.add('plan', name, milliseconds(seconds), f'{milliseconds(planned)} planned', seconds / planned)


def milliseconds(seconds: float) -> str:
  """Seconds as text."""
  return f'{1e3 * seconds:.2f} ms'


# ---- Files --------------------------------------------------------------------------------------


def write(report: Report, folder: Path, name: str, heading: list[str]) -> Path:
  """Writes the table, and the picture beside it.

  Returns:
    The table's path.
  """
  path = folder / f'{name}.md'
  picture = [f'![The ratios]({name}.png)', ''] if _draw(report.rows, folder / f'{name}.png') else []
  table = ['| part | what | found | against | ratio |', '| --- | --- | --- | --- | ---: |',
           *map(_line, report.rows)]
  path.write_text('\n'.join([*heading, '', *picture, *table]) + '\n')
  return path


def _line(row: Row) -> str:
  ratio = '' if row.ratio is None else f'{row.ratio:.3g}'
  mark = '' if row.passed else '**failed** '
  cells = [row.part, row.name, mark + row.found, row.against, ratio]
  return f'| {" | ".join(cell.replace("|", "/") for cell in cells)} |'


def _draw(rows: list[Row], path: Path) -> bool:
  """Bars of the largest error of each form and type and of the ratios of times; False if there are none."""
  drawn = [row for row in rows if row.ratio is not None and np.isfinite(row.ratio)]
  largest: dict[str, Row] = {}
  for row in drawn:
    form = row.name.partition(':')[0]
    if row.part == CORRECTNESS and (form not in largest or (row.ratio or 0) > (largest[form].ratio or 0)):
      largest[form] = row
  errors = list(largest.values())
  panels = [(title, part) for title, part in (
    ('Largest error, as a share of what is allowed', errors),
    ('Ratio of times', [row for row in drawn if row.part != CORRECTNESS])) if part]
  if not panels:
    return False
  with style.drawing():
    most = max(len(part) for _, part in panels)
    figure = Figure(figsize=(10, 1 + 0.25 * most), layout='constrained')
    for axis, (title, part) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
      names = [row.name if row.part == CORRECTNESS else f'{row.part}: {row.name}' for row in part]
      bars = axis.barh(range(len(part)), [row.ratio for row in part],
                       color=[style.BLUE if row.passed else style.ORANGE for row in part])
      axis.bar_label(bars, fmt='%.2g', padding=2)
      axis.set(title=title, yticks=range(len(part)))
      axis.set_yticklabels(names)
      axis.axvline(1, color=style.GREY, linewidth=1)
      axis.margins(x=0.12)
      axis.set_ylim(most - 0.5, -0.5)
    style.save(figure, path)
  return True
