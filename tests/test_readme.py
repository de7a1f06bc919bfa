"""The commands that pages and configs show can be given: modules, presets and fields are there."""
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from conic_jax import command_line, console

ROOT = Path(__file__).parent.parent
SHOWN = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))]
# tests/test_extending.py runs what docs/extending.md shows.
PAGES = [*(page for page in SHOWN if page.name != 'extending.md'), *sorted(ROOT.glob('configs/*.py')),
         *sorted(ROOT.glob('experiments/*/README.md'))]


def commands(page):
  """The commands of a page, continued lines joined, without what a loop of the shell fills in."""
  text = re.sub(r'\\{1,2}\n\s*', ' ', page.read_text())
  found = re.findall(r'python -m (conic_jax\S*)((?: +-?-?[\w.]+[^\s#`]*| +[\w/.$]\S*)*)', text)
  return [(module, arguments) for module, arguments in found if '$config' not in arguments]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_can_be_given(page):
  for module, arguments in commands(page):
    assert find_spec(module), module
    path = re.search(r'--config=(configs/\S+)', arguments)
    if path is not None:
      config = command_line.load(path[1])
      for field in re.findall(r'--config\.([\w.]+)=', arguments):
        command_line._check_field(config, field)


@pytest.mark.parametrize('page', SHOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
  for link in re.findall(r'\]\(([^)#\s]+)', page.read_text()):
    assert '://' in link or (page.parent / link).exists(), link


@pytest.mark.parametrize('page', SHOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_conic_can_be_given(page):
  for name, word in re.findall(r'^conic (\w+)(?: ([^\s#]+))?', page.read_text(), re.MULTILINE):
    assert name in console.COMMANDS, name
    assert name != 'evaluate' or word in console.PROTOCOLS


def test_readme_and_pages_show_every_evaluation_and_command():
  shown = ' '.join(' '.join(command) for page in SHOWN for command in commands(page))
  for name in ('knn', 'linear', 'semi', 'finetune', 'svm', 'segment', 'conic'):
    assert f'configs/{name}.py' in shown
  for module in ('embed', 'export', 'report', 'activations', 'preview', 'plan', 'main'):
    assert f'conic_jax.{module}' in shown
