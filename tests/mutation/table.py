"""The lines of what was tried, and the part of docs/testing.md that is made of them."""
import json
import math
from pathlib import Path
from typing import Any

from experiments.summary import between
from tests.checkout import ROOT
from tests.mutation.survivors import EQUIVALENT

RESULTS = Path(__file__).with_name('results.jsonl')
PAGE = ROOT / 'docs' / 'testing.md'
MARKS = '<!-- mutation -->', '<!-- /mutation -->'
Line = dict[str, Any]


def read_results() -> list[Line]:
  """All lines that were kept."""
  return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def newest(lines: list[Line]) -> list[Line]:
  """Of each module the lines of the version that was tried last."""
  last = {line['module']: line['version'] for line in lines}
  return [line for line in lines if line['version'] == last[line['module']]]


def reason(line: Line) -> str | None:
  """Why a fault changes nothing that a user could see; None where it does."""
  return EQUIVALENT.get((line['module'], line['operator'].partition('/')[2], line['before'], line['after']))


def survived(line: Line) -> bool:
  """Whether no test noticed a fault."""
  return line['outcome'] == 'survived'


def write_page() -> None:
  """Writes the table and the survivors into docs/testing.md."""
  PAGE.write_text(between(PAGE.read_text(), MARKS, text(newest(read_results()))))


def text(lines: list[Line]) -> str:
  """A row for each module, the share, and a line for each survivor."""
  rows = ['| module | tried | killed | timed out | equivalent | survived |', '| --- |' + ' ---: |' * 5]
  rows += [_row(module, [line for line in lines if line['module'] == module])
           for module in sorted({line['module'] for line in lines})]
  survivors = sorted(filter(survived, lines),
                     key=lambda line: (reason(line) is not None, line['module'], line['line']))
  shown = [f'- `{line["module"]}.py`: `{line["before"]}` → `{line["after"]}`: '
           f'{reason(line) or "**survived**"}' for line in survivors]
  return '\n'.join([*rows, _row('**all**', lines), '', _share(lines), '', *shown])


def _row(name: str, lines: list[Line]) -> str:
  killed, timed_out = (sum(line['outcome'] == outcome for line in lines)
                       for outcome in ('killed', 'timed out'))
  equivalent = sum(survived(line) and reason(line) is not None for line in lines)
  left = len(lines) - killed - timed_out - equivalent
  return f'| {name} | {len(lines)} | {killed} | {timed_out} | {equivalent} | {left} |'


def _share(lines: list[Line]) -> str:
  """The share of all faults, each module counting as it has faults, and of those that are not equivalent."""
  if not lines:
    return 'None was tried yet.'
  counted = [line for line in lines if not (survived(line) and reason(line))]
  hours = sum(line['seconds'] for line in lines) / 3600
  return (f'Killed: {_weighted(lines)} of all faults, {_weighted(counted)} of those that are not equivalent, '
          f'in {hours:.1f} hours of tests.')


def _weighted(lines: list[Line]) -> str:
  total = sum(1 / line['share'] for line in lines)
  share = sum(1 / line['share'] for line in lines if not survived(line)) / total
  sampled = any(line['share'] < 1 for line in lines)
  margin = 196 * math.sqrt(share * (1 - share) / len(lines))
  return f'{100 * share:.1f} %' + (f' (± {margin:.1f}, as they are a sample)' if sampled else '')
