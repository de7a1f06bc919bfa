"""The page of all images: its files, what is refused, and a browser that is clicked through it."""
import base64
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from conic_jax import embed
from conic_jax.errors import UserError
from conic_jax.evals import embeddings, encoders
from conic_jax.explore import __main__ as main
from conic_jax.explore import collection, write_page
from conic_jax.explore.__main__ import explore
from conic_jax.export import names
from conic_jax.pretraining import training

pytestmark = pytest.mark.slow

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.fixture(scope='module', autouse=True)
def small_batches():
  """Batches of sixteen images on eight devices rather than 256, to which a few images are filled up."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(embeddings, 'IMAGES_OF_DEVICE', 2)
    yield


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """A file of a small random network."""
  network = types.SimpleNamespace(name='resnet18', blocks=(1,), width=0.25, stem='imagenet')
  opened = encoders.open_encoder('random', network, 'float32')
  path = tmp_path_factory.mktemp('weights') / 'small.safetensors'
  safetensors.numpy.save_file(names.named(opened.variables, names.torchvision), path)
  return str(path)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """Thirty noisy images of two colours in two folders, one of them twice, and one that is broken."""
  root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
  for kind, colour in (('red', (200, 40, 40)), ('blue', (40, 40, 200))):
    (root / kind).mkdir()
    for index in range(15):
      pixels = np.clip(np.array(colour) + rng.integers(-40, 40, (24, 32, 3)), 0, 255).astype(np.uint8)
      Image.fromarray(pixels).save(root / kind / f'{index:02d}.png')
  shutil.copy(root / 'red/03.png', root / 'blue/a <copy>.png')
  (root / 'blue/broken.png').write_bytes(b'broken')
  return root


@pytest.fixture(scope='module')
def page(weights, images, tmp_path_factory):
  """The page of these images."""
  return explore(weights, str(images), tmp_path_factory.mktemp('page') / 'out', clusters=3)


def data_of(page):
  script = r'<script type="application/json" id="data">(.*?)</script>'
  return json.loads(re.search(script, page.read_text())[1])


def rows_of(path):
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def test_what_is_written(page):
  data, folder = data_of(page), page.parent
  assert sorted(path.name for path in folder.iterdir()) == [
    'copies.csv', 'images.csv', 'index.html', 'outliers.csv', 'sheet0.jpg']
  assert len(data['paths']) == 31
  assert data['paths'] == [row['path'] for row in rows_of(folder / 'images.csv')]
  assert {row['class'] for row in rows_of(folder / 'images.csv')} == {'red', 'blue'}
  by_distance = [float(row['distance']) for row in rows_of(folder / 'outliers.csv')]
  assert by_distance == sorted(by_distance, reverse=True)
  copy, = [row for row in rows_of(folder / 'copies.csv') if float(row['alike']) > 0.999]
  assert {copy['path'], copy['copy']} == {'red/03.png', 'blue/a <copy>.png'}
  assert '<copy>' not in page.read_text()
  assert [column['name'] for column in data['columns']] == [
    'class', 'folder', 'cluster', 'distance from neighbours']
  assert len(data['near']) == 31 * 12
  assert np.asarray(data['points']).max() == 4095


def test_the_sheet_has_every_thumbnail_in_its_place(page):
  data = data_of(page)
  with Image.open(page.parent / data['sheets'][0]) as sheet:
    pixels = np.asarray(sheet)
  size = data['tile']
  for index, path in enumerate(data['paths']):
    tile = pixels[:size, size * index:size * index + size].reshape(-1, 3).mean(axis=0)
    assert (tile[0] > tile[2]) == (path.startswith('red') or 'copy' in path)


def test_more_images_than_points_are_sampled_and_it_says_so(weights, images, tmp_path):
  page = explore(weights, str(images), tmp_path / 'out', points=10)
  assert re.search(r'(9|10) of 32 images, drawn by chance', page.read_text())
  again = explore(weights, str(images), tmp_path / 'again', points=10)
  assert data_of(again)['paths'] == data_of(page)['paths']


def test_one_image_has_a_page(weights, images, tmp_path):
  (tmp_path / 'one').mkdir()
  shutil.copy(images / 'red/00.png', tmp_path / 'one')
  data = data_of(explore(weights, str(tmp_path / 'one'), tmp_path / 'out'))
  assert (data['paths'], data['near'], data['pairs']) == (['00.png'], [], [])


def test_a_table_colours_by_its_columns(weights, images, tmp_path):
  table = tmp_path / 'table.csv'
  table.write_text('path,height,place\nred/00.png,1.5,A\nblue/01.png,,B\n')
  columns = data_of(explore(weights, str(images), tmp_path / 'out', table=table))['columns'][-2:]
  assert [column['name'] for column in columns] == ['height', 'place']
  assert [number for number in columns[0]['numbers'] if number is not None] == [1.5]
  assert columns[1]['names'] == ['', 'A', 'B']


def test_the_images_of_a_run_with_what_is_in_both_splits(tiny_config, tmp_path):
  tiny_config.eval.knn, tiny_config.eval.linear, tiny_config.max_steps = False, False, 2
  tiny_config.probe.images = 0
  root = tmp_path / 'images'
  shutil.copytree(tiny_config.data.dir, root)
  train, test = (root / split for split in (tiny_config.data.train, tiny_config.data.test))
  assert train != test
  kinds = sorted(path.parent for path in test.rglob('*.png'))
  shutil.copy(next(train.rglob('*.png')), kinds[0] / 'leak.png')
  tiny_config.data.dir = str(root)
  training.pretrain(tiny_config)
  page = explore(tiny_config.run)
  assert str(page) == f'{tiny_config.run}/explore/index.html'
  leaks = rows_of(page.parent / 'leaks.csv')
  assert any(row['path'].endswith('leak.png') or row['copy'].endswith('leak.png') for row in leaks)
  assert all(row['split'] != row['split of the copy'] for row in leaks)
  assert data_of(page)['columns'][1]['name'] == 'split'
  # Again over the older page, and by the name of no run.
  (page.parent / 'sheet0.jpg').unlink()
  explore(tiny_config.run, points=16)
  assert (page.parent / 'sheet0.jpg').exists()


def test_the_newest_run_is_taken(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=r'Which run\? There is none in runs/ here'):
    main.newest_run()
  for age, name in enumerate(('new', 'old')):
    (tmp_path / 'runs' / name / 'checkpoints').mkdir(parents=True)
    (tmp_path / 'runs' / name / 'config.json').write_text('{}')
    os.utime(tmp_path / 'runs' / name / 'config.json', (1e9 - age, 1e9 - age))
  (tmp_path / 'runs' / 'not a run').mkdir()
  assert main.newest_run() == 'runs/new'


def test_the_features_of_a_file_are_not_computed_again(weights, images, tmp_path, monkeypatch):
  out = tmp_path / 'features.parquet'
  monkeypatch.setattr(sys, 'argv', ['embed', weights, str(images), f'--out={out}'])
  embed.command()
  data = data_of(explore('any', str(out), tmp_path / 'out', clusters=3))
  assert len(data['paths']) == 31
  assert data['columns'][0]['names'] == ['blue', 'red']
  assert 1 in (np.asarray(data['alike']) > 0.999)


@pytest.mark.parametrize(('given', 'told'), [
  ({'images': None}, 'is no run, so which images'), ({'images': 'nowhere'}, 'nowhere'),
  ({'table': 'missing.csv'}, r'--table=.*missing\.csv cannot be read'),
  ({'table': 'other.csv'}, "has no column 'path'.* it has file, value"),
  ({'table': 'strange.csv'}, 'has none of the images'),
  ({'out': 'mine'}, 'no page of explore: give another')])
def test_what_cannot_be_is_refused(given, told, weights, images, tmp_path):
  (tmp_path / 'other.csv').write_text('file,value\na.png,1\n')
  (tmp_path / 'strange.csv').write_text('path,value\nelsewhere.png,1\n')
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine/notes.txt').write_text('mine')
  arguments = {'images': str(images), 'out': tmp_path / 'out',
               **{name: tmp_path / value if name in ('table', 'out') else value
                  for name, value in given.items()}}
  with pytest.raises(UserError, match=told):
    explore(weights, **arguments)
  assert (tmp_path / 'mine/notes.txt').exists()


def test_features_that_are_not_finite_are_left_out():
  vectors = np.array([[1, 2], [np.nan, 1], [3, 4]], np.float32)
  part = collection.Part(vectors, ['a', 'b', 'c'], '', ['', '', ''],
                         lambda ids: np.zeros((len(ids), 96, 96, 3), np.uint8), np.arange(3))
  assert collection._joined([part], 3).paths == ['a', 'c']


@pytest.mark.parametrize(('values', 'numbers'), [
  (['1', '', '2.5'], [1.0, None, 2.5]), (['1', 'x'], None), (['', ''], None), (['nan', '1'], [None, 1.0])])
def test_columns_of_numbers(values, numbers):
  assert write_page._numbers(values) == numbers


# ---- In a browser ---------------------------------------------------------------------------------


class Browser:
  """A real browser, driven through its debugging pipe."""

  def __init__(self, page, profile):
    (child_reads, self._writes), (reads, child_writes) = os.pipe(), os.pipe()
    command = (f'exec {BROWSER} --headless --no-sandbox --disable-gpu --window-size=1200,800 '
               f'--user-data-dir={profile} --remote-debugging-pipe 3<&{child_reads} 4>&{child_writes}')
    self._process = subprocess.Popen(['bash', '-c', command], pass_fds=(child_reads, child_writes),
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(child_reads)
    os.close(child_writes)
    self._answers, self._count, self._session, self.errors = os.fdopen(reads, 'rb'), 0, None, []
    self._buffer = b''
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
    for domain in ('Runtime', 'Log', 'Page'):
      self.call(f'{domain}.enable')
    self.call('Page.navigate', url=page.as_uri())
    self.wait_for('document.readyState === "complete" && sheets.every(sheet => sheet.complete)')

  def call(self, method, **params):
    self._count += 1
    message = {'id': self._count, 'method': method, 'params': params}
    message.update({'sessionId': self._session} if self._session else {})
    os.write(self._writes, json.dumps(message).encode() + b'\0')
    while True:
      answer = self._next()
      if answer.get('method') in ('Runtime.exceptionThrown', 'Log.entryAdded'):
        self.errors.append(answer['params'])
      if answer.get('id') == self._count:
        assert 'error' not in answer, answer
        return answer['result']

  def _next(self):
    while b'\0' not in self._buffer:
      part = self._answers.read1(1 << 16)
      assert part, 'the browser has ended'
      self._buffer += part
    message, _, self._buffer = self._buffer.partition(b'\0')
    return json.loads(message)

  def value(self, expression):
    return self.call('Runtime.evaluate', expression=expression, returnByValue=True)['result'].get('value')

  def wait_for(self, expression):
    for _ in range(600):
      if self.value(expression):
        return
      wait = 'new Promise(done => setTimeout(done, 100))'
      self.call('Runtime.evaluate', expression=wait, awaitPromise=True)
    raise AssertionError(f'{expression} did not come true')

  def click(self, x, y):
    for kind in ('mouseMoved', 'mousePressed', 'mouseReleased'):
      self.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', clickCount=1)

  def picture(self):
    data = self.call('Page.captureScreenshot', format='png')['data']
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
      return np.asarray(image.convert('RGB')).astype(int)

  def write(self, text):
    self.call('Input.insertText', text=text)

  def close(self):
    os.close(self._writes)
    self._answers.close()
    self._process.terminate()
    self._process.wait(30)


def every(selector):
  return f'document.querySelectorAll("{selector}")'


@pytest.fixture
def browser(page, tmp_path):
  if BROWSER is None:
    pytest.skip('there is no chromium, chromium-browser or google-chrome')
  opened = Browser(page, tmp_path / 'profile')
  yield opened
  opened.close()
  assert opened.errors == []


def test_points_are_drawn_a_click_shows_neighbours_and_a_search_finds_a_file(browser, page):
  data = data_of(page)
  x, y = browser.value('toScreen(5)')
  pixels = browser.picture()[int(y) - 3:int(y) + 4, int(x) - 3:int(x) + 4].reshape(-1, 3).mean(axis=0)
  assert (pixels[0] > pixels[2] + 50) == data['paths'][5].startswith('red')
  browser.click(x, y)
  assert browser.value('document.querySelector("#chosen h2").textContent') == data['paths'][5]
  shown = browser.value(f'[...{every("#nearest button")}].map(each => Number(each.dataset.image))')
  assert shown == data['near'][12 * 5:12 * 6]
  browser.value('document.querySelector("#nearest button").click()')
  assert browser.value('document.querySelector("#chosen h2").textContent') == data['paths'][shown[0]]

  browser.value('document.getElementById("search").focus()')
  browser.write('COPY')
  assert browser.value(f'[...{every("#list button")}].map(each => each.title)') == ['blue/a <copy>.png']
  assert browser.value('found.size') == 1

  for tab in ('outliers', 'copies'):
    browser.value(f'[...{every("#tabs button")}].find(each => each.textContent === "{tab}").click()')
    assert browser.value(f'{every("#list button")}.length') > 1
  for column in range(len(data['columns'])):
    browser.value(f'colour({column})')
    assert browser.value('colours.length') == 31
  before = browser.value('view.scale')
  browser.call('Input.dispatchMouseEvent', type='mouseWheel', x=300, y=300, deltaX=0, deltaY=-400)
  browser.wait_for(f'view.scale > {before}')


def test_a_page_on_a_disk_that_cannot_be_written_is_shown(page, tmp_path):
  if BROWSER is None:
    pytest.skip('there is no chromium, chromium-browser or google-chrome')
  copied = tmp_path / 'readonly'
  shutil.copytree(page.parent, copied)
  for path in (*copied.iterdir(), copied):
    path.chmod(0o555 if path.is_dir() else 0o444)
  opened = Browser(copied / 'index.html', tmp_path / 'profile')
  assert opened.value(f'{every("#list button")}.length') == 3
  opened.close()
  copied.chmod(0o755)
  assert opened.errors == []
