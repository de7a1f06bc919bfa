"""The library from Python: what is given, what comes back, and the page about it."""
import doctest
import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from support import tiny, write_images

import conic_jax
from conic_jax import api, embed
from conic_jax.errors import UserError
from conic_jax.evals import embeddings
from conic_jax.pretraining import training

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A tiny run of ConIC, and its images."""
  folder = tmp_path_factory.mktemp('api')
  config = tiny(write_images(folder / 'images'), folder / 'run')
  config.probe.images, config.eval.linear = 0, False
  training.pretrain(config)
  return conic_jax.Run(folder / 'run')


@pytest.fixture(scope='module')
def paths(run):
  return sorted((run.folder.parent / 'images').rglob('*.png'))


@pytest.fixture(scope='module')
def encoder(run):
  return run.encoder()


@pytest.fixture
def small_batches(monkeypatch):
  """Batches of sixteen images on eight devices rather than 256, to which a few images are filled up."""
  monkeypatch.setattr(embeddings, 'IMAGES_OF_DEVICE', 2)


@pytest.mark.slow
def test_a_folder_is_pretrained_on_with_the_settings_given(tmp_path, monkeypatch):
  images = write_images(tmp_path / 'my images')
  monkeypatch.chdir(tmp_path)
  run = conic_jax.pretrain(
    images, 'simclr', epochs=1, batch=16, size=16, data={'train': '', 'test': ''}, probe={'images': 0},
    encoder={'name': 'resnet18', 'blocks': [1], 'stem': 'cifar', 'width': 0.25}, figures=False)
  assert run.folder == Path('runs/my images')
  assert (run.config.method, run.config.epochs, run.config.views.size) == ('simclr', 1, 16)
  assert run.summary['step'] == 4
  again = conic_jax.pretrain(
    images, 'simclr', epochs=1, batch=16, size=16, data={'train': '', 'test': ''}, probe={'images': 0},
    encoder={'name': 'resnet18', 'blocks': [1], 'stem': 'cifar', 'width': 0.25}, figures=False)
  assert again.summary == run.summary


@pytest.mark.slow
def test_a_run_shows_its_figures_pictures_and_page(run, tmp_path):
  metrics = run.metrics
  assert list(metrics[metrics.loss.notna()].step) == [1, 2, 3, 4, 5, 6]
  assert run.summary['knn_top1'] == run.evaluate('knn')['knn_top1']
  assert run.report(tmp_path / 'page.html').read_text().startswith('<!')
  assert run.report() == run.folder / 'report.html'
  written = run.export('flax', tmp_path / 'encoder.safetensors')
  np.testing.assert_array_equal(conic_jax.load(run).variables['params']['stem']['conv']['kernel'],
                                run.encoder().variables['params']['stem']['conv']['kernel'])
  assert written[0].is_file()


@pytest.mark.slow
def test_reports_are_dicts_without_pandas(run, monkeypatch):
  monkeypatch.setitem(sys.modules, 'pandas', None)
  assert [row['step'] for row in run.metrics if 'loss' in row] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_an_image_has_one_vector_however_it_is_given(encoder, paths):
  expected = encoder(paths[:3])
  assert expected.shape == (3, encoder.num_features)
  pictures = [PIL.Image.open(path) for path in paths[:3]]
  arrays = np.stack([np.asarray(picture) for picture in pictures])
  for same in (pictures, arrays, jnp.asarray(arrays), arrays / 255, arrays.astype(np.float32) / 255,
               list(arrays), tuple(map(str, paths[:3])), [paths[0], pictures[1], arrays[2]]):
    np.testing.assert_array_equal(encoder(same), expected)
  for alone in (paths[0], str(paths[0]), pictures[0], arrays[0]):
    np.testing.assert_array_equal(encoder(alone), expected[0])


@pytest.mark.slow
def test_grey_images_and_those_with_alpha_are_as_their_files(encoder, tmp_path):
  rng = np.random.default_rng(0)
  for mode, shape in (('L', (20, 30)), ('RGBA', (20, 30, 4)), ('RGB', (20, 30, 3))):
    array = rng.integers(0, 256, shape, np.uint8)
    PIL.Image.fromarray(array).save(tmp_path / f'{mode}.png')
    np.testing.assert_array_equal(encoder(array), encoder(tmp_path / f'{mode}.png'))
  grey = rng.integers(0, 256, (20, 30, 1), np.uint8)
  np.testing.assert_array_equal(encoder(grey), encoder(grey[..., 0]))
  cmyk = PIL.Image.fromarray(array).convert('CMYK')
  np.testing.assert_array_equal(encoder(cmyk), encoder(cmyk.convert('RGB')))


@pytest.mark.slow
def test_batches_of_any_size_are_one_program(encoder, caplog):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (300, 16, 16, 3), np.uint8)
  every = encoder(images)
  caplog.clear()
  with jax.log_compiles():
    for count in (1, 7, 299):
      np.testing.assert_array_equal(encoder(images[:count]), every[:count])
  assert 'XLA compilation' not in caplog.text


@pytest.mark.slow
def test_a_folder_is_embedded_as_by_the_command(encoder, paths, tmp_path, monkeypatch):
  folder = paths[0].parents[2]
  found = encoder.embed(folder)
  monkeypatch.setattr(sys, 'argv', [
    'embed', encoder.name, str(folder), f'--out={tmp_path}/f.npz', '--batch_size=256'])
  embed.command()
  written = np.load(tmp_path / 'f.npz')
  assert found.paths == written['paths'].tolist()
  np.testing.assert_allclose(found.vectors, written['vectors'], atol=1e-5)
  best = encoder.nearest(paths[5], found, k=3)
  assert best[0] == (found.paths[5], pytest.approx(1, abs=1e-6))
  assert len(best) == 3


@pytest.mark.slow
def test_layers_and_pools(encoder, paths):
  assert {'features', 'stem', 'stage1'} <= set(encoder.layers)
  maps = encoder(paths[:2], layer='stage1', pool='none')
  assert maps.ndim == 4
  np.testing.assert_allclose(encoder(paths[:2], layer='stage1'), maps.mean((1, 2)), rtol=1e-5)
  np.testing.assert_allclose(encoder(paths[:2], layer='stage1', pool='max'), maps.max((1, 2)), rtol=1e-5)
  last = encoder.layers[-1] if encoder.layers[-1] != 'stem' else encoder.layers[-2]
  np.testing.assert_allclose(encoder(paths[:2], layer=last), encoder(paths[:2]), rtol=1e-5)
  assert encoder.embed(paths[0].parent, layer='stage1', pool='none').vectors.ndim == 4


@pytest.mark.slow
@pytest.mark.parametrize(('given', 'message'), [
  (np.zeros((3, 16, 16), np.uint8), 'channels come last'), (np.zeros((0, 16, 16, 3), np.uint8), 'No images'),
  ([], 'No images'), (np.full((16, 16, 3), 255.0), 'divide by 255'), (np.full((16, 16, 3), np.nan), '0 to 1'),
  (np.zeros((16, 16, 3), np.int32), 'uint8'), ('nowhere.png', 'nowhere.png cannot be read as an image'),
  ([b'no image'], 'image 0 cannot be read'), (7, 'channels come last')])
def test_what_is_no_image_is_told(encoder, given, message):
  with pytest.raises(UserError) as error:
    encoder(given)
  assert message in str(error.value)


@pytest.mark.slow
def test_an_unknown_layer_is_told_with_those_there_are(encoder, paths):
  for wrong in ({'layer': 'stage9'}, {'layer': 'stage1', 'pool': 'median'}):
    with pytest.raises(UserError) as error:
      encoder(paths[0], **wrong)
    assert 'stage1' in str(error.value)


@pytest.mark.parametrize(('settings', 'message'), [
  ({'epoch': 3}, 'did you mean config.epochs'), ({'epochs': 'many'}, 'config.epochs takes a whole number'),
  ({'views': 3}, 'is a group of settings'), ({'views': {'sise': 3}}, 'did you mean config.views.size'),
  ({'epochs': 0}, 'config.epochs is 0')])
def test_settings_are_checked_as_on_the_command_line(image_folder, tmp_path, settings, message):
  with pytest.raises(UserError) as error:
    conic_jax.pretrain(image_folder, out=tmp_path / 'run', **settings)
  assert message in str(error.value)


def test_a_network_of_other_settings_is_refused():
  with pytest.raises(UserError, match='A network has no depth; it has name, blocks'):
    conic_jax.load('random', depth=3)
  with pytest.raises(UserError, match='has its own network: leave out width'):
    conic_jax.load('nowhere', width=0.5)


def test_what_is_not_there_is_told(tmp_path):
  with pytest.raises(UserError, match='There is no encoder'):
    conic_jax.load(tmp_path / 'nowhere')
  with pytest.raises(UserError, match='is no run'):
    conic_jax.Run(tmp_path)
  with pytest.raises(UserError, match='no preset'):
    conic_jax.pretrain('nowhere')


def test_the_package_itself_imports_nothing_heavy():
  code = 'import sys, conic_jax; print([name for name in ("jax", "tensorflow") if name in sys.modules])'
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, capture_output=True, check=True)
  assert done.stdout.strip() == '[]'
  with pytest.raises(AttributeError):
    _ = conic_jax.nothing


@pytest.mark.slow
def test_the_examples_of_docstrings_run(small_batches):
  tests = doctest.DocTestFinder().find(api.load, globs={'conic_jax': conic_jax, 'np': np})
  assert sum(len(test.examples) for test in tests) > 0
  for test in tests:
    assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch, small_batches):
  (tmp_path / 'photographs').mkdir()
  for index, path in enumerate(sorted(write_images(tmp_path / 'images').rglob('*.png'))):
    shutil.copy(path, tmp_path / 'photographs' / (f'{index}.png' if index else 'a.png'))
  monkeypatch.chdir(tmp_path)
  # A smaller network than the images are worth, and no pictures: minutes less.
  smaller = functools.partial(
    api.pretrain, encoder={'name': 'resnet18', 'blocks': (1, 1), 'stem': 'cifar', 'width': 0.25},
    probe={'images': 0}, figures=False)
  monkeypatch.setattr(conic_jax, 'pretrain', smaller)
  blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'python.md').read_text(), re.DOTALL)
  names = {}
  for block in blocks:
    exec(block, names)
  assert names['features'].shape == (names['encoder'].num_features,)
  assert names['maps'].ndim == 4
  assert isinstance(names['embedded'], embeddings.Embeddings)
