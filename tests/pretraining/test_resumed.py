"""A run is its data and its settings: what a resume refuses, and what it tells."""
import json
import shutil
from pathlib import Path

import pytest
from support import losses_by_step, tiny

from conic_jax.data import inventory
from conic_jax.errors import UserError
from conic_jax.pretraining import training
from conic_jax.pretraining.identity import changes

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def saved(image_folder, tmp_path_factory):
  """A tiny run on its own copy of the images, stopped after its first epoch; to be copied."""
  root = tmp_path_factory.mktemp('saved')
  config = settings_of(shutil.copytree(image_folder, root / 'images'), root / 'run')
  config.max_steps = 3
  training.pretrain(config)
  return root


def settings_of(images, run):
  config = tiny(images, run)
  config.eval.knn = config.eval.linear = False
  return config


@pytest.fixture
def begun(saved, tmp_path):
  """The config of a copy of that run, which now goes on to its end."""
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  return settings_of(tmp_path / 'images', tmp_path / 'run')


def test_an_image_renamed_ends_a_resume_and_changes_nothing(begun, tmp_path):
  image = tmp_path / 'images' / 'train' / 'checks' / '03.png'
  image.rename(image.with_name('99.png'))
  before = {path: path.read_bytes() for path in Path(begun.run).rglob('*')
            if path.is_file() and path.name[0] != '.'}
  with pytest.raises(UserError, match=r"number 3 was 'checks/03.png' \(.* bytes\) and is 'checks/04.png'"):
    training.pretrain(begun)
  assert {path: path.read_bytes() for path in before} == before
  image.with_name('99.png').rename(image)
  training.pretrain(begun)
  assert max(losses_by_step(begun.run)) == 6


def test_a_run_older_than_inventories_gets_one(begun):
  (Path(begun.run) / inventory.FILE).unlink()
  training.pretrain(begun)
  assert (Path(begun.run) / inventory.FILE).is_file()


def test_changed_settings_are_listed_and_go_on(begun, capsys):
  begun.temperature, begun.views.hue, begun.kernels = 0.2, 0.3, False
  training.pretrain(begun)
  told = [line for line in capsys.readouterr().out.splitlines() if line.startswith('Changed since')]
  assert len(told) == 1
  assert told[0].endswith('config.kernels True → False, config.max_steps 3 → 0, config.temperature 0.1 → '
                          '0.2, config.views.hue 0.2 → 0.3.')
  assert max(losses_by_step(begun.run)) == 6


@pytest.mark.parametrize(('field', 'value', 'told'), [
  ('optimizer.name', 'lars', "config.optimizer.name was 'sgd', is 'lars'"),
  ('method', 'simclr', "method was 'conic', is 'simclr'"),
  ('seed', 5, 'config.seed was 0, is 5'),
  ('head.features', 12, 'config.head was'),
  ('batch_size', 8, 'config.batch_size was 16, is 8')])
def test_settings_that_cannot_change_are_refused(begun, field, value, told):
  if field == 'method':
    from support import as_method
    run, data = begun.run, begun.data.to_dict()
    begun = as_method(begun, 'simclr')
    begun.run = run
    begun.data.update(data)
  else:
    begun.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=f'does not fit this configuration: .*{told}.*Set config.run'):
    training.pretrain(begun)


@pytest.mark.parametrize('content', ['no json', '{"views": 3}'])
def test_a_damaged_config_json_is_written_anew_where_all_settings_are_given(begun, capsys, content):
  path = Path(begun.run) / 'config.json'
  path.write_text(content)
  training.pretrain(begun)
  told = capsys.readouterr().out
  assert f'{path} cannot be read, and is written anew.' in told or 'Changed since' in told
  assert json.loads(path.read_text())['method'] == 'conic'


def test_changes_are_named_by_field():
  before = {'a': 1, 'b': {'c': [1, 2], 'd': 'x' * 99}, 'run': 'one', 'versions': {'jax': '1'}, 'recipe': {}}
  now = {'a': 1, 'b': {'c': [1, 3], 'e': 2}, 'run': 'two', 'versions': {'jax': '2'}}
  assert changes(before, now) == [
    'config.b.c [1, 2] → [1, 3]', f'config.b.d {"x" * 37}… → absent', 'config.b.e absent → 2',
    'versions.jax 1 → 2']
