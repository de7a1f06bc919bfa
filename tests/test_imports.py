"""Imports point one way, and what is heavy stays in its room."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / 'conic_jax'

# What each room may import of the others; `errors`, `extensions`, `home` and `terminal` may be imported
# everywhere.
ALLOWED = {
  '__init__': {'api', 'hardware'}, 'errors': set(), 'extensions': set(), 'fields': set(), 'home': {'fields'},
  'config_files': {'data'}, 'views': set(), 'measures': set(), 'permutation': set(), 'optim': set(),
  'terminal': set(), 'ending': set(),
  'command_line': {'config_files', 'ending', 'fields', 'hardware'},
  'hardware': {'ending'},
  'buckets': set(),
  'losses': {'hardware', 'permutation'},
  'memories': {'hardware', 'losses', 'permutation'},
  'data': {'hardware', 'permutation', 'views'},
  'run': {'__init__', 'buckets', 'data', 'ending', 'hardware', 'memories'},
  'models': set(),
  'methods': {'hardware', 'losses', 'memories', 'models', 'run', 'views'},
  'visualise': {'measures'},
  'export': {'buckets', 'command_line', 'models', 'run', 'views'},
  'evals': {'buckets', 'data', 'export', 'fields', 'hardware', 'losses', 'measures', 'models', 'optim',
            'permutation', 'run', 'views', 'visualise'},
  'recipe': {'buckets', 'data', 'run'},
  'pretraining': {'__init__', 'buckets', 'data', 'evals', 'fields', 'hardware', 'memories', 'methods',
                  'models', 'optim', 'recipe', 'run', 'views'},
  'plan': {'command_line', 'data', 'hardware', 'methods', 'optim', 'pretraining', 'recipe', 'run'},
  'preview': {'buckets', 'command_line', 'data', 'hardware', 'methods', 'models', 'pretraining', 'views',
              'visualise'},
  'embed': {'buckets', 'command_line', 'data', 'evals', 'hardware', 'run', 'views', 'visualise'},
  'activations': {'buckets', 'command_line', 'data', 'evals', 'models', 'views', 'visualise'},
  'explore': {'buckets', 'command_line', 'data', 'evals', 'export', 'hardware', 'measures', 'visualise'},
  'report': {'buckets', 'command_line', 'export', 'models', 'run', 'visualise'},
  'main': {'buckets', 'command_line', 'ending', 'evals', 'hardware', 'pretraining', 'run'},
  'console': {'command_line', 'config_files', 'ending', 'fields'}, '__main__': {'console'},
  'completion': {'command_line', 'config_files', 'console', 'fields'},
  'api': {'buckets', 'command_line', 'config_files', 'data', 'evals', 'explore', 'export', 'fields',
          'hardware', 'models', 'pretraining', 'report', 'run'},
}
ONLY_IN = {'tensorflow': 'data', 'tensorflow_datasets': 'data', 'orbax': ('run/checkpoints', 'run/orbax_s3'),
           'fsspec': ('buckets', 'data/urls'), 'gcsfs': 'buckets', 's3fs': 'buckets',
           'matplotlib': 'visualise', 'flax.linen': 'models'}
FILES = sorted(ROOT.rglob('*.py'))


def room(path):
  return path.relative_to(ROOT).parts[0].removesuffix('.py')


def imported(path):
  """Full names of all that a file imports, submodules as 'package.module'."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
  rooms = {room(file) for file in FILES}
  for name in imported(path):
    parts = name.split('.')
    if parts[0] == 'conic_jax':
      target = parts[1] if len(parts) > 1 and parts[1] in rooms else '__init__'
      allowed = {room(path), 'errors', 'extensions', 'home', 'terminal'} | ALLOWED[room(path)]
      assert target in allowed, f'{path} imports {name}'
    assert parts[0] not in ('configs', 'tests', 'benchmarks'), f'{path} imports {name}'


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_packages_stay_in_their_room(path):
  for name in imported(path):
    for package, home in ONLY_IN.items():
      if name == package or name.startswith(package + '.'):
        place = path.relative_to(ROOT).with_suffix('').as_posix()
        homes = home if isinstance(home, tuple) else (home,)
        assert f'{place}/'.startswith(tuple(f'{home}/' for home in homes)), f'{path} imports {name}'


def test_configs_import_ml_collections_and_each_other_only():
  for path in (ROOT.parent / 'configs').glob('*.py'):
    assert {name.split('.')[0] for name in imported(path)} <= {'ml_collections', 'configs'}, path


def test_no_two_files_have_one_name():
  names = [path.name for path in FILES if not path.name.startswith('__')]
  assert sorted(names) == sorted(set(names))


def test_no_file_is_over_500_lines():
  for path in [*FILES, *ROOT.parent.glob('tests/**/*.py'), *ROOT.parent.glob('benchmarks/*.py')]:
    assert len(path.read_text().splitlines()) <= 500, path


@pytest.mark.slow
def test_a_pretraining_imports_neither_what_draws_nor_data_sets_by_name():
  """Each takes a part of a second of every start."""
  code = 'import sys, conic_jax.pretraining.training; print(*sys.modules)'
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT.parent, text=True, capture_output=True,
                        check=True)
  assert not {'matplotlib', 'tensorflow_datasets', 'torch', 'pandas'} & set(done.stdout.split())
