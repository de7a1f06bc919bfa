"""What mkdocs does besides: the README is the first page, and links to the repository's files lead to it."""
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
REPOSITORY = 'https://github.com/conic-jax/conic_jax/blob/main/'
_LINK = re.compile(r'(\]\()([^)#\s]+)([^)]*\))')


def on_files(files, config):
  """Adds the README as the page index.md."""
  files.append(File.generated(config, 'index.md', content=(ROOT / 'README.md').read_text()))
  return files


def on_page_markdown(markdown, page, **_):
  """Rewrites the links of a page: to other pages where there are such, else to the repository."""
  folder = '' if page.file.src_uri == 'index.md' else 'docs'
  return _LINK.sub(lambda match: match[1] + target(match[2], folder) + match[3], markdown)


def target(link: str, folder: str) -> str:
  """Where a link leads on the site, from a file in a folder of the repository."""
  if '://' in link or link.startswith('mailto:'):
    return link
  path = posixpath.normpath(posixpath.join(folder, link))
  inside = path.removeprefix('docs/')
  if inside != path:
    return inside
  return 'index.md' if path == 'README.md' else REPOSITORY + path
