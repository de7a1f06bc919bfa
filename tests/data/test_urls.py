"""Remote files: tars, Parquet files and lists through fsspec, in memory and from a web server."""
import contextlib
import functools
import http.server
import re
import threading

import fsspec
import numpy as np
import pytest
from containers import WRITERS, images_of
from ml_collections import ConfigDict

from conic_jax.data import sources, urls
from conic_jax.data.folder import Folder
from conic_jax.errors import UserError


def data_of(name, dir, tmp_path):
  return ConfigDict({'name': name, 'dir': str(dir), 'cache': str(tmp_path / 'cache')})


@pytest.fixture
def memory():
  """A file system in memory, whose /bucket is empty before and after."""
  system = fsspec.filesystem('memory')
  yield system
  system.rm('/bucket', recursive=True)


class Server(http.server.SimpleHTTPRequestHandler):
  """Serves a folder, and ranges of files as web servers do; counts the bytes that it sends."""
  sent: list[int]

  def log_message(self, *args):
    """Is quiet."""

  def do_GET(self):
    """Answers with a file or a part of it."""
    with open(self.translate_path(self.path), 'rb') as file:
      content = file.read()
    asked = re.fullmatch(r'bytes=(\d+)-(\d+)', self.headers.get('Range', ''))
    part = content[int(asked[1]):int(asked[2]) + 1] if asked else content
    self.send_response(206 if asked else 200)
    self.send_header('Content-Length', str(len(part)))
    if asked:
      self.send_header('Content-Range', f'bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(content)}')
    self.end_headers()
    self.server.sent.append(len(part))  # Before the client goes on.
    self.wfile.write(part)


@contextlib.contextmanager
def served(folder):
  """The URL of a folder on a web server, and the sizes of its answers."""
  handler = functools.partial(Server, directory=folder)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    server.sent = []
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
      yield f'http://127.0.0.1:{server.server_port}', server.sent
    finally:
      server.shutdown()
      thread.join()


@pytest.mark.parametrize('name', WRITERS)
def test_remote_files_are_as_local_ones(name, image_folder, memory, tmp_path):
  WRITERS[name](image_folder / 'train', tmp_path / 'set', 'train')
  if name == 'list':  # Paths from the list's folder.
    rows = [('path', 'label'), *((path.relative_to(image_folder), label)
                                 for path, label in images_of(image_folder / 'train'))]
    (tmp_path / 'set' / 'train.csv').write_text('\n'.join(','.join(map(str, row)) for row in rows))
  memory.put(str(tmp_path / 'set'), '/bucket/set', recursive=True)
  if name == 'list':
    memory.put(str(image_folder / 'train'), '/bucket/set/train', recursive=True)
  folder = Folder(str(image_folder / 'train'), '')
  data = data_of(name, 'memory://bucket/set', tmp_path)
  assert sources.splits_of(data, ('train', 'val')) == {'train'}
  source = sources.open_source(data, 'train')
  ids = np.random.default_rng(0).permutation(folder.num_images)
  assert source.read(ids)[0] == folder.read(ids)[0]
  np.testing.assert_array_equal(source.labels(), folder.labels())
  assert source.class_names == folder.class_names
  assert source.name(0).startswith('memory://bucket/set/')
  assert source.inventory()
  memory.rm('/bucket/set', recursive=True)
  if name != 'parquet':  # Whose row groups are still in memory.
    assert source.read(np.array([40]))[0] == [b'']


def test_a_pattern_of_remote_files(image_folder, memory, tmp_path):
  WRITERS['wds'](image_folder / 'train', tmp_path / 'set', 'train')
  memory.put(str(tmp_path / 'set'), '/bucket/set', recursive=True)
  for pattern in ('memory://bucket/set/train-*.tar', 'memory://bucket/set/train-{00..02}.tar'):
    assert sources.open_source(data_of('wds', pattern, tmp_path), '').num_images == 48
  with pytest.raises(UserError, match=r'2 of 5 tar files are missing \(memory://bucket/set/train-03\.tar'):
    sources.open_source(data_of('wds', 'memory://bucket/set/train-{00..04}.tar', tmp_path), '')
  with pytest.raises(UserError, match='matches no file'):
    sources.open_source(data_of('wds', 'memory://bucket/set/val-*.tar', tmp_path), '')


@pytest.mark.slow
def test_an_image_of_a_web_server_is_one_range(image_folder, tmp_path):
  WRITERS['wds'](image_folder / 'train', tmp_path / 'set', 'train')
  with served(tmp_path / 'set') as (url, sent):
    source = sources.open_source(data_of('wds', f'{url}/train-{{00..02}}.tar', tmp_path), '')
    del sent[:]
    images, _ = source.read(np.array([0, 47]))
    assert sorted(sent) == sorted(map(len, images))
    assert images == Folder(str(image_folder / 'train'), '').read(np.array([0, 47]))[0]
  with pytest.raises(UserError, match='1 of 1 tar files are missing'):
    sources.open_source(data_of('wds', f'{url}/train-00.tar', tmp_path), '')
  assert source.read(np.array([0]))[0] == [b'']


def test_a_network_that_fails_once_is_asked_again(memory, monkeypatch):
  monkeypatch.setattr(urls, '_PAUSE', 0)
  memory.pipe('/bucket/file', b'0123456789')
  answers = [RuntimeError('reset'), TimeoutError()]
  cat_file = type(memory).cat_file
  def fail_first(self, *args, **kwargs):
    if answers:
      raise answers.pop()
    return cat_file(self, *args, **kwargs)
  monkeypatch.setattr(type(memory), 'cat_file', fail_first)
  assert urls.read('memory://bucket/file', 2, 3) == b'234'
  answers += [RuntimeError('reset')] * 3
  with pytest.raises(OSError, match='RuntimeError: reset'):
    urls.read('memory://bucket/file', 2, 3)
  with pytest.raises(OSError, match='has 2 bytes from 8 where 5 were asked for'):
    urls.read('memory://bucket/file', 8, 5)


@pytest.mark.parametrize(('url', 'told'), [('nothing://b/a.tar', r'nothing:// cannot be read'),
                                           ('dask://b/a.tar', r'dask:// cannot be read yet .*install')])
def test_a_store_that_cannot_be_read_is_told(url, told, tmp_path):
  with pytest.raises(UserError, match=told):
    sources.open_source(data_of('wds', url, tmp_path), '')


def test_the_folder_that_all_files_are_in():
  assert urls.common_folder(['a/b/1.tar', 'a/b/2.tar']) == 'a/b/'
  assert urls.common_folder(['s3://b/a/x/1.tar', 's3://b/a/xy/1.tar']) == 's3://b/a/'
  assert urls.common_folder(['1.tar', 'a/2.tar']) == ''
