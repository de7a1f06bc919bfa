"""The committed pages are what the commands make of the committed lines."""
import json
import shutil
from pathlib import Path

import pytest

from experiments import jobs, pictures, summary, verdict
from experiments.recipe import EXPERIMENT as RECIPE
from experiments.recipe import table
from experiments.scales import SCALES
from experiments.verdict import __main__ as judged

ROOT = Path(jobs.__file__).parent


def test_every_number_of_the_pages_comes_from_the_lines(tmp_path, monkeypatch):
  root = tmp_path / 'experiments'
  shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns('__pycache__'))
  monkeypatch.setattr(pictures, 'draw', lambda *_: None)
  experiments = jobs.load(jobs.all_names())
  summary.write(experiments, SCALES['cpu'], root)
  for name in ('.', *(each.name for each in experiments)):
    path = Path(name) / 'README.md'
    assert (root / path).read_text() == (ROOT / path).read_text(), (
      f'experiments/{path}: run python -m experiments.summary')


def test_the_tables_of_recipe_and_verdict_come_from_the_lines():
  results = jobs.read('cpu')
  lines = jobs.lines_of(verdict.EXPERIMENT, SCALES['cpu'], {}, results)
  written = (ROOT / 'verdict' / 'results.md').read_text()
  assert judged.table({name: seeds[0]['figures'] for name, seeds in lines.items()}) == written
  runs = table.by_set_and_method(jobs.lines_of(RECIPE, SCALES['cpu'], {}, results))
  assert table.table(runs) == (ROOT / 'recipe' / 'results.md').read_text()
  assert table.short_table(runs) in table.PAGE.read_text()


@pytest.mark.parametrize('path', sorted(ROOT.glob('*/results*.jsonl')), ids=lambda path: path.parent.name)
def test_lines_are_of_runs_that_are_asked_for_once(path):
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  keys = [jobs.identity('cpu', line['config'], line['settings'], line['seed'], line['after'])
          for line in lines]
  assert len(set(keys)) == len(keys)
  assert not [line for line in lines if '/tmp' in json.dumps(line) or '/home' in json.dumps(line)]
