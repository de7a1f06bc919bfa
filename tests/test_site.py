"""The documentation as a site: built strictly, with every link there, and nothing from elsewhere."""
import html.parser
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

import conic_jax

ROOT = Path(__file__).parent.parent


class Page(html.parser.HTMLParser):
  """Links and ids of a page."""

  def __init__(self, path):
    super().__init__()
    self.links, self.ids, self.loaded = [], set(), []
    self.feed(path.read_text())

  def handle_starttag(self, tag, attributes):
    given = dict(attributes)
    self.ids.add(given.get('id'))
    if tag == 'a' and given.get('href'):
      self.links.append(given['href'])
    if tag in ('script', 'img', 'link') and given.get('rel') not in ('canonical', 'prev', 'next', 'edit'):
      self.loaded += [given[name] for name in ('src', 'href') if given.get(name)]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """The folder of the site, whose build ends at the first warning."""
  pytest.importorskip('mkdocs')
  pytest.importorskip('mkdocstrings')
  out = tmp_path_factory.mktemp('site')
  built = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '-q', '-d', str(out)],
                         cwd=ROOT, capture_output=True, text=True, check=False)
  assert built.returncode == 0, built.stderr
  return out


@pytest.fixture(scope='module')
def pages(site):
  return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob('*.html')}


@pytest.mark.slow
def test_every_link_leads_somewhere(site, pages):
  for name, page in pages.items():
    for link in page.links:
      path, _, anchor = unquote(link).partition('#')
      if '://' in path or path.startswith('mailto:') or name == '404.html':
        continue
      target = ((site / name).parent / path).resolve() if path else site / name
      target = target / 'index.html' if target.is_dir() else target
      assert target.exists(), f'{name}: {link}'
      if anchor and target.suffix == '.html':
        assert anchor in pages[target.relative_to(site).as_posix()].ids, f'{name}: {link}'


@pytest.mark.slow
def test_links_to_the_repository_are_of_files_that_are_there(pages):
  found = {link for page in pages.values() for link in page.links
           if link.startswith('https://github.com/conic-jax/conic_jax/blob/main/')}
  assert len(found) > 20
  for link in found:
    assert (ROOT / link.partition('/blob/main/')[2].partition('#')[0]).exists(), link


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(pages):
  for name, page in pages.items():
    assert not [link for link in page.loaded if link.startswith(('http:', 'https:', '//'))], name


@pytest.mark.slow
def test_every_page_is_in_the_navigation_and_the_api_has_what_is_exported(site, pages):
  names = {path.stem for path in (ROOT / 'docs').glob('*.md')}
  assert names | {'index', '404'} == {name.removesuffix('.html') for name in pages}
  start = (site / 'index.html').read_text()
  assert all(f'href="{name}.html"' in start for name in names)
  api = pages['api.html'].ids
  for name in conic_jax.__all__:
    assert f'conic_jax.api.{name}' in api
  assert re.search(r'conic_jax\.losses\.dense\.\w+', ' '.join(filter(None, api)))
