"""That the count of unnoticed faults is of the whole, and that its page agrees with its lines."""
from itertools import chain
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.mutation import table
from tests.mutation.guards import GUARDS, files_of
from tests.mutation.survivors import EQUIVALENT


def test_every_module_of_the_core_has_guards_that_exist():
  wanted = {'optim', 'views', 'hardware/local_rows', 'run/loop', 'run/state', 'pretraining/training',
            'pretraining/train_step', 'data/augment', 'data/sampler', 'evals/knn', 'evals/linear',
            'methods/__init__'}
  for folder in ('losses', 'memories', 'methods'):
    wanted |= {f'{folder}/{path.stem}' for path in (ROOT / 'conic_jax' / folder).glob('[a-z]*.py')}
  assert set(GUARDS) == wanted
  assert all((ROOT / file).is_file() for module in GUARDS for file in files_of(module))
  walk = (ROOT / 'tests/methods/test_all.py').read_text()
  for test in chain.from_iterable(GUARDS.values()):
    name = test.partition('::')[2].partition('[')[0]
    assert not name or f'def {name}(' in walk


def test_what_is_said_to_be_equivalent_still_stands():
  """In the code, or in the code as it was when the lines were made that the page shows."""
  shown = {(line['module'], line['before']) for line in table.newest(table.read_results())}
  for module, _, before, after in EQUIVALENT:
    assert before in (ROOT / f'conic_jax/{module}.py').read_text() or (module, before) in shown
    assert before != after


def test_the_page_is_made_of_the_lines():
  page = table.PAGE.read_text()
  assert table.text(table.newest(table.read_results())) in page


def line(outcome, module='losses', version='b', share=0.5, **changes):
  return {'module': module, 'version': version, 'share': share, 'operator': 'core/AddNot', 'before': 'if a:',
          'after': 'if not a:', 'outcome': outcome, 'line': 1, 'seconds': 36.0, **changes}


def test_the_share_counts_modules_as_they_have_faults_and_leaves_old_versions_out(monkeypatch):
  monkeypatch.setattr(table, 'EQUIVALENT', {('memory', 'AddNot', 'if a:', 'if not a:'): 'no reason'})
  lines = [line('survived', version='a'), line('killed'), line('timed out'),
           line('survived', 'memory', share=1.0)]
  shown = table.text(table.newest(lines))
  assert '| losses | 2 | 1 | 1 | 0 | 0 |' in shown
  assert '| memory | 1 | 0 | 0 | 1 | 0 |' in shown
  assert 'Killed: 80.0 % (± 45.3, as they are a sample) of all faults, 100.0 %' in shown
  assert '- `memory.py`: `if a:` → `if not a:`: no reason' in shown


def test_faults_are_those_of_the_tool_but_for_annotations_and_stars_that_unpack(tmp_path):
  pytest.importorskip('cosmic_ray')
  from tests.mutation.faults import faults
  source = ('def f(x: int | None = 3, *, z=None) -> int | None:\n  y: int | str = x + 1\n'
            '  return {**z, y: y * y, **z}\n')
  Path(tmp_path / 'm.py').write_text(source)
  found = list(faults(tmp_path, 'm.py', 1.0))
  assert {(fault.line, fault.after) for fault in found} == {
    (1, 'def f(x: int | None = 4, *, z=None) -> int | None:'),
    (1, 'def f(x: int | None = 2, *, z=None) -> int | None:'), (2, 'y: int | str = x - 1'),
    (2, 'y: int | str = x + 2'), (2, 'y: int | str = x + 0'), (3, 'return {**z, y: y / y, **z}')}
  assert all(fault.text.splitlines()[fault.line - 1].strip() == fault.after for fault in found)
