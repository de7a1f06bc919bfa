"""A folder of one's own from one typed line: what is open is settled and kept, by a resumed run too."""
import json

import numpy as np
import pytest
from PIL import Image

from conic_jax import recipe
from conic_jax.command_line import load
from conic_jax.data.folder import Folder
from conic_jax.errors import UserError
from conic_jax.evals import standalone
from conic_jax.pretraining import settings, training


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """Eighty images of 16×16 in train/, twenty in val/, of two classes."""
  root = tmp_path_factory.mktemp('own')
  rng = np.random.default_rng(0)
  for split, count in (('train', 40), ('val', 10)):
    for name, low in (('dark', 0), ('light', 128)):
      folder = root / split / name
      folder.mkdir(parents=True)
      for index in range(count):
        Image.fromarray(rng.integers(low, low + 128, (16, 16, 3), np.uint8)).save(folder / f'{index}.png')
  return root


@pytest.fixture
def config(images, tmp_path):
  """ConIC on the folder, with a tiny network and the rest left open."""
  config = load('configs/conic.py:folder')
  config.run, config.data.dir = str(tmp_path / 'run'), str(images)
  config.encoder.blocks, config.encoder.width, config.views.size = (1,), 0.125, 16
  config.head.hidden, config.linear.epochs, config.linear.learning_rates = 16, 1, (0.1,)
  config.epochs, config.knn_every, config.probe.images, config.figures = 2, 0, 0, False
  return config


@pytest.mark.slow
def test_one_line_trains_and_evaluates(config, tmp_path, capsys):
  summary = training.pretrain(config)
  assert {'knn_top1', 'linear_top1', 'pixels', 'random_init'} <= set(summary)
  written = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert (written['data']['train'], written['data']['test'], written['batch_size']) == ('train', 'val', 8)
  assert (written['epochs'], written['views']['size']) == (2, 16)
  reasons = dict(written['recipe']['reasons'])
  assert 'eighth of 80 images' in reasons['batch_size']
  assert 'epochs' not in reasons
  evaluation = load('configs/knn.py')
  evaluation.encoder = config.run
  assert standalone.evaluate(evaluation)['knn_top1'] == summary['knn_top1']
  said = capsys.readouterr().out
  assert 'an eighth of 80 images at most' in said


@pytest.mark.slow
def test_a_resumed_run_keeps_its_settings(config, tmp_path, capsys, monkeypatch):
  config.max_steps = 3
  config.eval.knn = config.eval.linear = config.eval.baselines = False
  training.pretrain(config)
  before = json.loads((tmp_path / 'run' / 'config.json').read_text())
  config.max_steps = 5
  monkeypatch.setattr(recipe, 'look', lambda *_: pytest.fail('A run that has begun is not looked at again.'))
  assert training.pretrain(config)['step'] == 5
  after = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert {**before, 'max_steps': 5} == after
  assert 'Settings chosen when this run began' in capsys.readouterr().out


@pytest.mark.parametrize('labelled', [True, False])
def test_settings_of_the_linear_protocol_are_shown_where_it_can_run(config, images, mesh8, labelled):
  said = []
  settled, kept = settings.settle(
    settings.choose_splits(config)[0], Folder(str(images), 'train'), labelled, mesh8, said.append)
  assert any('linear.batch_size' in line for line in said) == labelled
  assert settled.linear.batch_size == 128
  assert 'linear.batch_size' in dict(kept['reasons'])


def test_fields_that_play_no_part_are_chosen_without_a_word(config, images, mesh8):
  """As where an older run goes on, or where all else is given."""
  source = Folder(str(images), 'train')
  config, _ = recipe.resolve(settings.choose_splits(config)[0], recipe.look(source, True, 0))
  with config.encoder.ignore_type():
    config.encoder.update(patch=None, positions=None)
  said = []
  settled, kept = settings.settle(config, source, True, mesh8, said.append)
  assert (settled.encoder.patch, settled.encoder.positions) == (0, 'sincos')
  assert said == []
  assert dict(kept['reasons']).keys() == {'encoder.patch', 'encoder.positions'}


@pytest.mark.slow
def test_epochs_fit_the_minutes_by_the_speed_that_is_measured(config, images, mesh8, monkeypatch):
  monkeypatch.setattr(settings, '_TRIED_SECONDS', 0.1)
  config.epochs, config.minutes = None, 0.2
  said = []
  settled, kept = settings.settle(
    settings.choose_splits(config)[0], Folder(str(images), 'train'), True, mesh8, said.append)
  assert settled.epochs >= 1
  reason = dict(kept['reasons'])['epochs']
  assert 'at 1,281,167 images' in reason or 'ms an image' in reason
  assert any('Training takes about' in line for line in said)


@pytest.mark.slow
def test_the_speed_is_that_of_reading_and_learning(config, images, mesh8, monkeypatch):
  monkeypatch.setattr(settings, '_TRIED_SECONDS', 0.1)
  config, _ = settings.choose_splits(config)
  source = Folder(str(images), 'train')
  settled, _ = recipe.resolve(config, recipe.look(source, True, 0))
  assert 0 < settings.seconds_per_image(settled, source, mesh8) < 10


@pytest.mark.parametrize(('changes', 'answer'), [
  ({'minutes': 5.0}, r'config\.minutes is 5 and config\.epochs is 2: minutes choose the epochs'),
  ({'minutes': -1.0}, r'config\.minutes is -1\.0: it must be 0 or above'),
  ({'epochs': 0}, r'config\.epochs is 0: it must be at least 1'),
  ({'batch_size': 128}, r'80 images, fewer than one batch of 128')])
def test_settings_that_disagree_are_told(config, changes, answer):
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=answer):
    training.pretrain(config)


def test_a_config_without_open_fields_is_left_alone(tiny_config, mesh8):
  assert settings.settle(tiny_config, None, False, mesh8, print) == (tiny_config, {})


def folder_of(kind, root):
  """Eighty images that are hard to learn from."""
  rng = np.random.default_rng(1)
  shapes = {'grey': (16, 16), 'tiny': (1, 2, 3), 'strips': (6, 96, 3), 'tall strips': (96, 6, 3)}
  for index in range(80):
    if kind == 'copies' and index % 3:
      with Image.open(root / f'{index - index % 3}.png') as first:
        image = first.copy()
    else:
      image = Image.fromarray(rng.integers(0, 256, shapes.get(kind, (16, 16, 3)), np.uint8))
    image.save(root / f'{index}.png')


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'said'), [
  ('copies', 'Warning: Of 80 images that were looked at, 80 look like copies of others'),
  ('grey', 'batch_size'), ('tiny', 'batch_size'), ('strips', '16.0 times as long as wide'),
  ('tall strips', '16.0 times as long as wide')])
def test_any_images_are_trained_on_and_the_user_is_told(config, tmp_path, kind, said, capsys):
  root = tmp_path / 'images'
  root.mkdir()
  folder_of(kind, root)
  config.data.dir, config.max_steps = str(root), 2
  config.eval.knn = config.eval.linear = config.eval.baselines = False
  assert training.pretrain(config)['step'] == 2
  assert said in capsys.readouterr().out
