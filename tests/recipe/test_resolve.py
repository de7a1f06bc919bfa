"""Open fields: which they are, how the command line opens and gives them, and what a resumed run keeps."""
import json

import pytest

from conic_jax import command_line, main, recipe
from conic_jax.buckets.run_folder import RunFolder
from conic_jax.command_line import load
from conic_jax.errors import UserError
from conic_jax.pretraining import settings
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
  for refuse in (settings.check, lambda config: recipe.resolve(config, FACTS)):
    with pytest.raises(UserError, match=r'config\.seed has no automatic value.*batch_size'):
      refuse(config)


def test_a_flag_and_its_value_may_stand_apart():
  config = parsed('--config=configs/conic.py:folder', '--config.batch_size', '64', '--config.alpha', 'auto')
  assert config.batch_size == 64
  assert recipe.is_open(config, 'alpha')


def test_a_field_is_given_or_left_open():
  with pytest.raises(UserError, match=r'--config\.batch_size is given and left open too'):
    parsed('--config=configs/conic.py', '--config.batch_size=auto', '--config.batch_size=64')


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


@pytest.mark.parametrize('name', ['moco_v1', 'co2_moco_v1', 'instdisc'])
def test_what_a_method_has_not_stays_away(name):
  config = load(f'configs/{name}.py:folder')
  config.data.train = config.data.test = ''
  for facts in (FACTS, Facts(200_000, 256, accelerator=True)):
    settled, _ = recipe.resolve(config, facts)
    assert (settled.head.hidden, settled.views.blur) == (0, 0.0)


@pytest.mark.parametrize(('folders', 'train', 'test'), [
  (('train', 'val'), 'train', 'val'), (('train', 'test'), 'train', 'test'),
  (('train', 'validation', 'test'), 'train', 'validation'), (('cats', 'dogs'), '', ''), (('train',), '', ''),
  (('test', 'val'), '', ''), ((), '', '')])
def test_the_folders_of_a_split_are_found(folders, train, test, tmp_path):
  for name in folders:
    (tmp_path / name).mkdir()
  config = load('configs/conic.py:folder')
  config.data.dir = str(tmp_path)
  config, _ = settings.choose_splits(config)
  assert (config.data.train, config.data.test) == (train, test)


def test_a_test_folder_that_was_given_is_not_trained_on(tmp_path):
  for name in ('train', 'holdout'):
    (tmp_path / name).mkdir()
  config = load('configs/conic.py:folder')
  config.data.dir, config.data.test = str(tmp_path), 'holdout'
  config, _ = settings.choose_splits(config)
  assert (config.data.train, config.data.test) == ('train', 'holdout')


def test_a_train_folder_that_was_given_takes_no_other_test(tmp_path):
  for name in ('train', 'val', 'more'):
    (tmp_path / name).mkdir()
  config = load('configs/conic.py:folder')
  config.data.dir, config.data.train = str(tmp_path), 'more'
  config, _ = settings.choose_splits(config)
  assert (config.data.train, config.data.test) == ('more', '')


def begin(folder, checkpoint):
  """A run with choices of its own; gives the config that began it, its fields open."""
  config = load('configs/conic.py:folder')
  config.run, config.data.train, config.data.test = str(folder), '', ''
  settled, choices = recipe.resolve(config, FACTS)
  written = json.loads(settled.to_json_best_effort())
  written['epochs'] = 123
  written['recipe'] = {'reasons': [[choice.field, choice.reason] for choice in choices]}
  (folder / 'config.json').write_text(json.dumps(written))
  if checkpoint:
    (folder / 'checkpoints' / '10').mkdir(parents=True)
  return config


@pytest.mark.parametrize('checkpoint', [False, True])
def test_a_run_keeps_what_it_began_with(tmp_path, checkpoint):
  config = begin(tmp_path, checkpoint)
  again = recipe.apply(config, recipe.stored(RunFolder(tmp_path), config))
  assert (again.epochs, again.batch_size, again.views.crop) == (123, 128, (0.15, 1.0))
  assert not recipe.open_fields(again)


@pytest.mark.parametrize(('checkpoint', 'kept'), [(False, False), (True, True)])
@pytest.mark.parametrize('changes', [{'batch_size': 64}, {'minutes': 5.0}, {'method': 'exemplar'}])
def test_before_its_first_checkpoint_a_run_may_be_begun_with_other_flags(tmp_path, checkpoint, kept, changes):
  config = begin(tmp_path, checkpoint)
  config.update_from_flattened_dict(changes)
  assert bool(recipe.stored(RunFolder(tmp_path), config)) == kept


def test_a_run_of_before_the_recipe_keeps_its_settings(tmp_path):
  config = begin(tmp_path, checkpoint=True)
  written = json.loads((tmp_path / 'config.json').read_text())
  del written['recipe'], written['views']['crop']
  (tmp_path / 'config.json').write_text(json.dumps(written))
  kept = {choice.field: choice.value for choice in recipe.stored(RunFolder(tmp_path), config)}
  assert kept['epochs'] == 123
  assert 'views.crop' not in kept
  assert recipe.stored(RunFolder(tmp_path / 'none'), config) == []


@pytest.mark.parametrize('content', [None, '', '[]', '{"views": 3}', '{"recipe": 5, "optimizer": [1]}',
                                     '{"recipe": {"reasons": [1]}}'])
def test_a_begun_run_does_not_choose_anew_in_silence(tmp_path, content):
  config = begin(tmp_path, checkpoint=True)
  path = tmp_path / 'config.json'
  path.unlink()
  if content is not None:
    path.write_text(content)
  with pytest.raises(UserError, match=r'config\.json cannot be read, .*: bring it back .*epochs'):
    recipe.stored(RunFolder(tmp_path), config)
  (tmp_path / 'checkpoints' / '10').rmdir()
  assert recipe.stored(RunFolder(tmp_path), config) == []


def test_fields_that_there_were_not_yet_do_not_forget_the_choices(tmp_path):
  config = begin(tmp_path, checkpoint=False)
  written = json.loads((tmp_path / 'config.json').read_text())
  del written['views']['hue'], written['linear']['momentum']
  (tmp_path / 'config.json').write_text(json.dumps(written))
  assert recipe.apply(config, recipe.stored(RunFolder(tmp_path), config)).epochs == 123


def test_choices_are_lines_of_field_value_and_reason():
  text = recipe.describe([Choice('batch_size', 64, 'an eighth'),
                          Choice('views.crop', (0.1, 1.0), 'the paper’s')])
  assert text.splitlines()[1:] == ['  batch_size  64              an eighth',
                                   '  views.crop  (0.1, 1.0)      the paper’s']


def test_choices_that_play_no_part_are_not_shown():
  shown = recipe.describe([Choice('batch_size', 64, 'an eighth'), Choice('encoder.patch', 0, recipe.UNUSED)])
  assert 'batch_size' in shown
  assert 'encoder.patch' not in shown
  assert recipe.describe([Choice('encoder.patch', 0, recipe.UNUSED)]) == ''
