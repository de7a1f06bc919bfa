"""Evaluations as tasks: what they take from the encoder's run, and where their figures go."""
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from conic_jax.command_line import load
from conic_jax.errors import UserError
from conic_jax.evals import encoders, standalone
from conic_jax.evals.encoders import Encoder
from conic_jax.evals.protocols import linear_settings
from conic_jax.views import evaluated

TINY = {'name': 'resnet18', 'stem': 'cifar', 'blocks': (1,), 'width': 0.125}
EVALUATIONS = {
  'knn': ('run', 'imagenet', 'cifar10', 'photos', 'folder'),
  'linear': ('run', 'imagenet', 'cifar10', 'photos', 'folder', 'conic', 'moco', 'one_million'),
  'finetune': ('cifar10', 'cifar100', 'sun397', 'dtd', 'inaturalist18', 'folder', 'photos', 'cifar10_32'),
  'svm': ('voc07', 'folder', 'cifar10', 'photos'),
  'semi': tuple(f'{data}{share}pct' for data in ('', 'folder_', 'cifar10_', 'photos_') for share in (1, 10))}


def shrink(config, images):
  """Makes an evaluation as small as `write_images` and a network of one block."""
  config.network.update(TINY)
  config.data.update(dir=str(images), test='test')
  config.views.size = config.eval.resize = config.eval.batch_size = 16


def encoder_with(pretraining):
  return Encoder('runs/x', None, {}, evaluated({}), None, pretraining)


@pytest.mark.parametrize(('name', 'preset'), [(name, preset) for name in EVALUATIONS
                                              for preset in EVALUATIONS[name]])
def test_presets_load_and_all_but_run_are_whole(name, preset):
  config = load(f'configs/{name}.py:{preset}')
  assert config.task in standalone.TASKS
  if preset == 'run':
    with pytest.raises(UserError, match='has no run to take data'):
      standalone.complete(config, encoder_with(None))
  else:
    assert standalone.complete(config, encoder_with(None)).data.name == config.data.name != ''


def test_results_do_not_overwrite_each_other():
  results = [load(f'configs/{name}.py:{preset}').result for name in EVALUATIONS
             for preset in EVALUATIONS[name]]
  assert len(set(results)) == len(results)


@pytest.mark.parametrize('name', ['config', 'summary', 'store', 'a/b', '..', ''])
def test_a_result_takes_no_file_of_the_run(tmp_path, name):
  config = load('configs/knn.py:photos')
  config.encoder, config.run, config.result = 'random', str(tmp_path), name
  config.network.blocks, config.network.width = (1,), 0.125
  with pytest.raises(UserError, match=f"config.result is '{name}': give a name without folders"):
    standalone.evaluate(config)
  assert not list(tmp_path.iterdir())


def test_recipes_are_the_papers():
  recipes = {name: load(f'configs/linear.py:{name}').linear for name in ('conic', 'moco', 'one_million')}
  assert {name: (own.learning_rates, own.batch_size, own.schedule, own.milestones, own.epochs)
          for name, own in recipes.items()} == {
    'conic': ((75.0,), 512, 'cosine', (), 100), 'moco': ((30.0,), 256, 'steps', (0.6, 0.8), 100),
    'one_million': ((40.0,), 2048, 'cosine', (), 100)}
  for name in recipes:
    of_run = load(f'configs/{ {"moco": "moco_v2"}.get(name, name) }.py').linear
    assert of_run.to_dict() == recipes[name].to_dict()
  for share, head in (('1pct', 15.0), ('10pct', 10.0)):
    semi = load(f'configs/semi.py:{share}')
    assert (semi.finetune.learning_rate, semi.finetune.head_learning_rate) == (0.001, head)
    assert (semi.data.name, semi.data.train, semi.data.test, semi.finetune.labels) == (
      f'imagenet2012_subset/{share}', 'train', 'validation', 1.0)


def test_what_is_open_is_taken_from_the_run():
  pretraining = load('configs/moco_v2.py:imagenet100')
  pretraining.data.dir, pretraining.data.train, pretraining.data.test = '/images', 'train', 'val'
  config = load('configs/linear.py')
  config.linear.epochs = 7
  config = standalone.complete(config, encoder_with(pretraining))
  assert (config.data.dir, config.views.size, config.eval.batch_size) == ('/images', 224, 512)
  settings = linear_settings(config)
  assert (settings.learning_rates, settings.epochs, settings.milestones) == ((30.0,), 7, (0.6, 0.8))


def test_a_run_of_before_a_setting_has_its_default():
  pretraining = load('configs/conic.py:photos')
  with pretraining.unlocked():
    for field in ('schedule', 'milestones', 'normalise', 'momentum', 'crop'):
      del pretraining.linear[field]
    for field in ('aspect', 'brightness', 'mean', 'std'):
      del pretraining.views[field]
  config = standalone.complete(load('configs/linear.py'), encoder_with(pretraining))
  settings = linear_settings(config)
  assert (settings.schedule, settings.milestones, settings.epochs) == ('cosine', (), 10)
  assert (settings.normalise, settings.momentum, settings.crop) == ('none', 0.9, (0.08, 1.0))
  assert evaluated(config.views) == evaluated({'size': 32})


def test_a_setting_of_the_run_is_taken_and_one_that_is_given_stays():
  pretraining = load('configs/conic.py:photos')
  pretraining.linear.momentum, pretraining.linear.crop = 0.8, (0.2, 1.0)
  config = load('configs/linear.py')
  config.linear.crop = (0.3, 1.0)
  settings = linear_settings(standalone.complete(config, encoder_with(pretraining)))
  assert (settings.momentum, settings.crop) == (0.8, (0.3, 1.0))


def test_data_of_its_own_is_not_mixed_with_the_runs():
  pretraining = load('configs/conic.py:photos')
  config = load('configs/knn.py')
  config.data.name, config.data.dir = 'folder', '/other'
  config = standalone.complete(config, encoder_with(pretraining))
  assert (config.data.name, config.data.dir, config.data.train) == ('folder', '/other', '')


@pytest.mark.slow
def test_a_random_encoder_is_fine_tuned_as_a_task(image_folder, tmp_path, capsys):
  config = load('configs/finetune.py:folder')
  config.encoder, config.run = 'random', str(tmp_path)
  shrink(config, image_folder)
  config.finetune.update(batch_size=16, epochs=1, labels=0.5)
  figures = standalone.evaluate(config)
  assert json.loads((tmp_path / 'finetune_folder.json').read_text()) == figures
  assert figures['num_labels'] == 24
  assert f'Written to {tmp_path / "finetune_folder.json"}' in capsys.readouterr().out


@pytest.mark.slow
def test_the_linear_task_leaves_the_encoder_alone_and_draws_its_confusion(
    image_folder, mesh8, tmp_path, open_session):
  config = load('configs/linear.py:folder')
  shrink(config, image_folder)
  config.linear.update(learning_rates=(0.1, 1.0), epochs=1, batch_size=16)
  encoder, said = encoders.open_encoder('random', config.network), []
  before = jax.tree.map(np.copy, encoder.variables)
  outcome = standalone.TASKS['linear'](encoder, config, open_session(mesh8, log=said.append))
  figures = outcome.figures
  jax.tree.map(np.testing.assert_array_equal, encoder.variables, before)
  assert 0 <= figures['linear_top1'] <= figures['linear_top5'] == 1
  assert f'a learning rate up to {figures["linear_stable_rate"]:.2g} is stable' in said[-1]
  outcome.pictures['confusion'](tmp_path / 'confusion.png')
  with Image.open(tmp_path / 'confusion.png') as picture:
    assert picture.width > 100


@pytest.mark.slow
def test_a_picture_that_cannot_be_written_ends_no_evaluation(image_folder, tmp_path, capsys):
  config = load('configs/linear.py:folder')
  config.encoder, config.run = 'random', str(tmp_path)
  shrink(config, image_folder)
  config.linear.update(learning_rates=(0.1,), epochs=1, batch_size=16)
  (tmp_path / 'figures').touch()
  figures = standalone.evaluate(config)
  assert json.loads((tmp_path / 'linear_folder.json').read_text()) == figures
  last = capsys.readouterr().out.splitlines()[-1]
  assert last.startswith('Could not draw linear_folder_confusion.png (')
  assert f'{tmp_path}/figures' in last


@pytest.mark.slow
@pytest.mark.parametrize(('changes', 'message'), [
  ({'task': 'detect'}, "'detect'; available: pretrain, knn, linear, finetune, svm, segment"),
  ({'encoder': ''}, 'Which encoder'), ({'encoder': 'runs/nowhere'}, "no encoder 'runs/nowhere'"),
  ({'encoder': 'configs'}, "'configs' is no run"),
  ({'encoder': 'random', 'run': 'ftp://host/run'}, 'give a folder, gs://BUCKET/PATH'),
  ({'encoder': 'random', 'eval.features': 'head'}, "features is 'head', and the encoder random has none"),
  ({'encoder': 'random', 'data': ConfigDict({'name': 'photos', 'dir': '', 'train': 'train', 'test': '',
                                            'cache': ''})}, 'needs labelled images')])
def test_mistakes_are_told(changes, message):
  config = load('configs/knn.py:photos')
  config.network.update(blocks=(1,), width=0.125)
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    standalone.evaluate(config)


def test_a_random_encoder_depends_on_the_seed_alone():
  network = load('configs/knn.py:photos').network
  network.update(blocks=(1,), width=0.125)
  kernels = [encoders.open_encoder('random', network, seed=seed).variables['params']['stem']['conv']['kernel']
             for seed in (0, 0, 1)]
  assert (kernels[0] == kernels[1]).all()
  assert (kernels[0] != kernels[2]).any()
