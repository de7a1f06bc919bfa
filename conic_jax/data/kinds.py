"""Kinds of sources whose images, or the paths of whose images, are in few files."""

SUFFIXES = {'wds': ('.tar',), 'parquet': ('.parquet', '.pq'), 'list': ('.csv', '.tsv', '.txt')}


def kind_of(path: str) -> str:
  """The kind of source that the end of a path tells: a name of `SUFFIXES`, or 'folder'."""
  return next((kind for kind, suffixes in SUFFIXES.items() if path.lower().endswith(suffixes)), 'folder')


def is_pattern(path: str) -> bool:
  """Whether a path stands for several files, as shard-{000..999}.tar and part-*.tar do."""
  return any(sign in path for sign in '{*')


def folder_of(path: str) -> str:
  """The folder that the names of a path's images are shown from: the path, or where its files are."""
  if kind_of(path) == 'folder':
    return path
  return path.partition('{')[0].partition('*')[0].rpartition('/')[0] or '.'
