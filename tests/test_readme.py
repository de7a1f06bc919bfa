"""The commands that README and the configs show can be given: modules, presets and fields are there."""
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from conic_jax import command_line

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', *sorted(ROOT.glob('configs/*.py')),
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


@pytest.mark.parametrize('page', [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))],
                         ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
  for link in re.findall(r'\]\(([^)#\s]+)', page.read_text()):
    assert '://' in link or (page.parent / link).exists(), link


def test_the_readme_shows_every_evaluation_and_command():
  shown = ' '.join(' '.join(command) for command in commands(ROOT / 'README.md'))
  for name in ('knn', 'linear', 'semi', 'finetune', 'svm', 'segment', 'conic'):
    assert f'configs/{name}.py' in shown
  for module in ('embed', 'export', 'report', 'activations', 'preview', 'plan', 'main'):
    assert f'conic_jax.{module}' in shown
