"""Open fields: which they are, how the command line opens and gives them, and what a resumed run keeps."""
import json

import pytest

from conic_jax import command_line, main, recipe
from conic_jax.command_line import load
from conic_jax.errors import UserError
from conic_jax.recipe import Choice, Facts

FACTS = Facts(3000, 256)


def parsed(*arguments):
  argv = ['main', *arguments]
  values = main.define_flags(argv)
  command_line.parse(argv, values, '')
  return values.config


def test_the_command_line_gives_open_fields_their_types():
  config = parsed('--config=configs/conic.py:folder', '--config.batch_size=64',
                  '--config.views.crop=(0.5,1.0)', '--config.optimizer.warmup_epochs=2')
  assert (config.batch_size, config.views.crop, config.optimizer.warmup_epochs) == (64, (0.5, 1.0), 2)
  assert 'batch_size' not in recipe.open_fields(config)
  assert 'epochs' in recipe.open_fields(config)


def test_auto_opens_a_field_of_any_preset():
  config = parsed('--config=configs/conic.py', '--config.batch_size=auto', '--config.views.crop=auto',
                  '--config.encoder.name=auto')
  assert set(recipe.open_fields(config)) == {'views.crop', 'encoder.name', 'batch_size'}
  settled, choices = recipe.resolve(config, FACTS)
  assert [choice.field for choice in choices] == ['views.crop', 'encoder.name', 'batch_size']
  assert (settled.batch_size, settled.encoder.name, settled.epochs) == (128, 'resnet18', 200)


def test_a_word_of_its_own_stays_a_word():
  config = parsed('--config=configs/conic.py', '--config.dtype=auto')
  assert config.dtype == 'auto'
  assert not recipe.open_fields(config)


def test_a_field_without_a_rule_cannot_be_open():
  config = parsed('--config=configs/conic.py', '--config.seed=auto')
  with pytest.raises(UserError, match=r'config\.seed has no automatic value.*batch_size'):
    recipe.resolve(config, FACTS)


@pytest.mark.parametrize(('argument', 'answer'), [
  ('--config.batch_size=many', r'config\.batch_size takes a whole number, or auto, not'),
  ('--config.alpha=strong', r'config\.alpha takes a number such as 2\.5, not')])
def test_a_wrong_value_is_told(argument, answer):
  with pytest.raises(UserError, match=answer):
    parsed('--config=configs/conic.py:folder', argument)


def test_the_config_that_is_resolved_stays_as_it_was():
  config = load('configs/conic.py:folder')
  config.data.train = config.data.test = ''
  recipe.resolve(config, FACTS)
  assert 'batch_size' in recipe.open_fields(config)


@pytest.mark.parametrize(('folders', 'train', 'test'), [
  (('train', 'val'), 'train', 'val'), (('train', 'test'), 'train', 'test'),
  (('train', 'validation', 'test'), 'train', 'validation'), (('cats', 'dogs'), '', ''), (('train',), '', ''),
  (('test', 'val'), '', ''), ((), '', '')])
def test_the_folders_of_a_split_are_found(folders, train, test, tmp_path):
  for name in folders:
    (tmp_path / name).mkdir()
  config = load('configs/conic.py:folder')
  config.data.dir = str(tmp_path)
  recipe.split_folders(config)
  assert (config.data.train, config.data.test) == (train, test)


def test_a_train_folder_that_was_given_takes_no_other_test(tmp_path):
  for name in ('train', 'val', 'more'):
    (tmp_path / name).mkdir()
  config = load('configs/conic.py:folder')
  config.data.dir, config.data.train = str(tmp_path), 'more'
  recipe.split_folders(config)
  assert (config.data.train, config.data.test) == ('more', '')


def test_a_run_keeps_what_it_began_with(tmp_path):
  config = load('configs/conic.py:folder')
  config.data.train = config.data.test = ''
  settled, choices = recipe.resolve(config, FACTS)
  written = json.loads(settled.to_json_best_effort())
  written['epochs'] = 123
  written['recipe'] = {'num_images': 3000, 'reasons': [[choice.field, choice.reason] for choice in choices]}
  (tmp_path / 'config.json').write_text(json.dumps(written))
  config.batch_size = 64
  kept = recipe.stored(tmp_path, config, 3000)
  again = recipe.apply(config, kept)
  assert (again.epochs, again.batch_size, again.views.crop) == (123, 64, settled.views.crop)
  assert not recipe.open_fields(again)
  assert recipe.stored(tmp_path, config, 3001) is None
  assert recipe.stored(tmp_path / 'none', config, 3000) is None


def test_choices_are_lines_of_field_value_and_reason():
  text = recipe.describe([Choice('batch_size', 64, 'an eighth'),
                          Choice('views.crop', (0.1, 1.0), 'the paper’s')])
  assert text.splitlines()[1:] == ['  batch_size  64              an eighth',
                                   '  views.crop  (0.1, 1.0)      the paper’s']
