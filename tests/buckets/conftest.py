"""Folders in buckets of both kinds."""
import contextlib

import pytest
from bucket_servers import SERVERS


@pytest.fixture(scope='session')
def known(tmp_path_factory):
  """The environment in which both kinds of buckets are found, for as long as the tests last."""
  with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
    environment = {}
    for kind, server in SERVERS.items():
      environment |= stack.enter_context(server(tmp_path_factory.mktemp(kind)))[1]
    for name, value in environment.items():
      patch.setenv(name, value)
    yield environment


@pytest.fixture(params=SERVERS)
def bucket(request, known, tmp_path, monkeypatch):
  """The URL of a new folder in a bucket of each kind; working copies are in the test's own folder."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return f'{request.param}://bucket/{tmp_path.name}'


@pytest.fixture
def google_bucket(known, tmp_path, monkeypatch):
  """As `bucket`, of Google's alone."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return f'gs://bucket/{tmp_path.name}'
