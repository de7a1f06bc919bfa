"""Imports point one way, and what is heavy stays in its room."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / 'conic_jax'

# What each room may import of the others; `errors` may be imported everywhere.
ALLOWED = {
  'errors': set(), 'views': set(), 'losses': set(), 'measures': set(), 'state': set(), 'optim': set(),
  'metrics': set(), 'mesh': set(), '__init__': set(), 'permutation': set(), 'companion': set(),
  'stop': set(), 'verdict': set(),
  'command_line': set(),
  'models': set(),
  'memory': {'losses', 'mesh', 'classifier'},
  'classifier': {'losses', 'mesh', 'permutation', 'companion'},
  'methods': {'models', 'losses', 'memory', 'classifier', 'companion', 'state', 'mesh', 'views'},
  'data': {'mesh', 'views', 'permutation'},
  'checkpoint': {'state', 'mesh'},
  'visualise': {'models', 'checkpoint'},
  'export': {'models', 'checkpoint', 'views', 'command_line'},
  'evals': {'export', 'models', 'data', 'mesh', 'optim', 'checkpoint', 'visualise', 'views', 'metrics',
            'measures', 'permutation'},
  'recipe': {'data'},
  'train_step': {'data', 'mesh', 'methods', 'optim', 'state', 'views'},
  'settings': {'companion', 'data', 'mesh', 'methods', 'optim', 'recipe', 'train_step'},
  'train': {'checkpoint', 'companion', 'data', 'evals', 'mesh', 'methods', 'metrics', 'optim', 'state',
            'settings', 'stop', 'train_step', 'verdict', 'views', '__init__'},
  'topology': set(), 'hlo': set(),
  'plan': {'recipe', 'settings', 'train_step', 'topology', 'hlo', 'methods', 'optim', 'mesh', 'data',
           'metrics', 'command_line'},
  'preview': {'settings', 'train_step', 'methods', 'models', 'data', 'mesh', 'views', 'visualise',
              'command_line'},
  'embed': {'evals', 'data', 'mesh', 'views', 'visualise', 'command_line'},
  'activations': {'evals', 'data', 'models', 'views', 'visualise', 'command_line'},
  'report': {'checkpoint', 'export', 'models', 'verdict', 'visualise', 'command_line'},
  'main': {'train', 'evals', 'command_line'},
}
ONLY_IN = {'tensorflow': 'data', 'tensorflow_datasets': 'data', 'orbax': 'checkpoint',
           'matplotlib': 'visualise', 'flax.linen': 'models', 'tensorboardX': 'metrics'}
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
      assert target in {room(path), 'errors'} | ALLOWED[room(path)], f'{path} imports {name}'
    assert parts[0] not in ('configs', 'tests', 'benchmarks'), f'{path} imports {name}'


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_packages_stay_in_their_room(path):
  for name in imported(path):
    for package, home in ONLY_IN.items():
      if name == package or name.startswith(package + '.'):
        assert room(path) == home, f'{path} imports {name}'


def test_configs_import_ml_collections_and_each_other_only():
  for path in (ROOT.parent / 'configs').glob('*.py'):
    assert {name.split('.')[0] for name in imported(path)} <= {'ml_collections', 'configs'}, path


def test_no_file_is_over_500_lines():
  for path in [*FILES, *ROOT.parent.glob('tests/**/*.py'), *ROOT.parent.glob('benchmarks/*.py')]:
    assert len(path.read_text().splitlines()) <= 500, path
