"""The lines of what was tried, and the part of docs/testing.md that is made of them."""
import json
import math
from pathlib import Path
from typing import Any

from experiments.summary import between
from tests.mutants.__main__ import ROOT
from tests.mutation.survivors import EXPLAINED

RESULTS = Path(__file__).with_name('results.jsonl')
PAGE = ROOT / 'docs' / 'testing.md'
MARKS = '<!-- mutation -->', '<!-- /mutation -->'


def read_results() -> list[dict[str, Any]]:
  """All lines that were kept."""
  return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def newest(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Of each module the lines of the version that was tried last; of each fault its last line."""
  last = {line['module']: line['version'] for line in lines}
  return list({(line['module'], line['operator'], line['before'], line['after'], line['occurrence']): line
               for line in lines if line['version'] == last[line['module']]}.values())


def reason(line: dict[str, Any]) -> str | None:
  """Why nothing can or need notice a fault; None where something should."""
  return EXPLAINED.get((line['module'], line['before'], line['after']))


def write_page() -> None:
  """Writes the table and the survivors into docs/testing.md."""
  PAGE.write_text(between(PAGE.read_text(), MARKS, text(newest(read_results()))))


def text(lines: list[dict[str, Any]]) -> str:
  """A row for each module, and a line for each survivor."""
  modules = sorted({line['module'] for line in lines})
  rows = ['| module | faults tried | noticed | alike | unnoticed |', '| --- | ---: | ---: | ---: | ---: |']
  rows += [_row(module, [line for line in lines if line['module'] == module]) for module in modules]
  rows.append(_row('**all**', lines))
  survivors = [line for line in lines if line['outcome'] == 'survived']
  survivors.sort(key=lambda line: (reason(line) is None, line['module'], line['line']))
  return '\n'.join([*rows, '', *_share(lines), '', *map(_shown, survivors)])


def _shown(line: dict[str, Any]) -> str:
  return (f'- `{line["module"]}.py`: `{line["before"]}` → `{line["after"]}`: '
          f'{reason(line) or "**unnoticed**"}')


def _row(name: str, lines: list[dict[str, Any]]) -> str:
  killed = sum(line['outcome'] == 'killed' for line in lines)
  explained = sum(line['outcome'] == 'survived' and reason(line) is not None for line in lines)
  return f'| {name} | {len(lines)} | {killed} | {explained} | {len(lines) - killed - explained} |'


def _share(lines: list[dict[str, Any]]) -> list[str]:
  if not lines:
    return ['None was tried yet.']
  share = sum(line['outcome'] == 'killed' for line in lines) / len(lines)
  margin = 1.96 * math.sqrt(share * (1 - share) / len(lines))
  hours = sum(line['seconds'] for line in lines) / 3600
  return [f'Noticed: {100 * share:.1f} ± {100 * margin:.1f} % of these (95 %, as they are a sample), '
          f'in {hours:.1f} hours of tests.']
