"""Fine-tuning and segmentation as runs: killed, resumed, opened and exported."""
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from clusters import ended, fork, wait_for
from PIL import Image
from safetensors.torch import load_file
from support import losses_by_step

from conic_jax.command_line import load
from conic_jax.errors import UserError
from conic_jax.evals import standalone
from conic_jax.evals.encoders import open_encoder
from conic_jax.export.__main__ import export
from conic_jax.run.checkpoints import restore_model

pytestmark = pytest.mark.slow

FINETUNE = {
  'config.network.stem': 'cifar', 'config.network.blocks': (1,), 'config.network.width': 0.125,
  'config.network.name': 'resnet18', 'config.views.size': 16, 'config.eval.resize': 16,
  'config.eval.batch_size': 16, 'config.finetune.epochs': 12, 'config.finetune.batch_size': 16,
  'config.data.test': 'test', 'config.encoder': 'random'}
SEGMENT = {
  'config.network.stem': 'cifar', 'config.network.blocks': (1,), 'config.network.width': 0.125,
  'config.network.name': 'resnet18', 'config.eval.batch_size': 8, 'config.segmentation.num_classes': 2,
  'config.segmentation.iterations': 24, 'config.segmentation.report_every': 2,
  'config.segmentation.batch_size': 8, 'config.segmentation.crop': (16, 16),
  'config.segmentation.short_side': 16, 'config.segmentation.test_size': (16, 16),
  'config.segmentation.rates': (1,), 'config.segmentation.channels': 8, 'config.encoder': 'random'}


@pytest.fixture(scope='module')
def masked_folder(tmp_path_factory):
  """train/ and val/ with images of 16 pixels, bright where the mask is 1."""
  root, rng = tmp_path_factory.mktemp('masked'), np.random.default_rng(0)
  for split, count in (('train', 16), ('val', 8)):
    for part in ('images', 'masks'):
      (root / split / part).mkdir(parents=True)
    for index in range(count):
      mask = np.repeat(np.repeat(rng.integers(0, 2, (2, 2), np.uint8), 8, axis=0), 8, axis=1)
      image = np.uint8(mask[..., None] * 150 + rng.integers(0, 60, (16, 16, 3)))
      Image.fromarray(image).save(root / split / 'images' / f'{index}.png')
      Image.fromarray(mask).save(root / split / 'masks' / f'{index}.png')
  return root


@pytest.fixture(scope='module', params=['finetune', 'segment'])
def task(request, image_folder, masked_folder):
  """(the config's file, its fields) of a small task."""
  fields = {'finetune': FINETUNE, 'segment': SEGMENT}[request.param]
  data = {'finetune': image_folder, 'segment': masked_folder}[request.param]
  return f'configs/{request.param}.py:folder', {**fields, 'config.data.dir': str(data)}


def config_of(task, run):
  file, fields = task
  config = load(file)
  config.update_from_flattened_dict({name.removeprefix('config.'): value for name, value in fields.items()})
  config.run = str(run)
  return config


@pytest.fixture(scope='module')
def undisturbed(task, tmp_path_factory):
  """(the config, the figures) of a task that was done at once."""
  config = config_of(task, tmp_path_factory.mktemp('undisturbed') / 'run')
  return config, standalone.evaluate(config)


@pytest.fixture(scope='module')
def resumed(task, undisturbed, tmp_path_factory):
  """(the config, the figures, the step of the kill) of the same beside it, killed and gone on with."""
  file, fields = task
  config, _ = undisturbed
  run = shutil.copytree(config.run, tmp_path_factory.mktemp('resumed') / 'run')
  config = config_of(task, run)
  config.result = 'other'
  saved = run / 'other'
  command = ['-W', 'ignore', '-m', 'conic_jax.main', f'--config={file}', f'--config.run={run}',
             '--config.result=other', *(f'--{name}={value}' for name, value in fields.items())]
  with ended([fork(command)]) as processes:
    wait_for(processes, lambda: len(list(saved.glob('checkpoints/[0-9]*'))) >= 2)
  killed_at = max(losses_by_step(saved))
  return config, standalone.evaluate(config), killed_at


@pytest.fixture
def done(task, undisturbed, tmp_path):
  """(the config, the figures) of a copy of what was done at once."""
  config, figures = undisturbed
  return config_of(task, shutil.copytree(config.run, tmp_path / 'run')), figures


def test_after_kill_9_it_ends_in_the_same_bits(undisturbed, resumed):
  (config, expected), (other, figures, killed_at) = undisturbed, resumed
  whole, saved = Path(config.run, config.result), Path(other.run, other.result)
  assert killed_at < max(losses_by_step(saved)), 'it was not over when it was killed'
  assert figures == expected
  assert losses_by_step(saved) == losses_by_step(whole)
  jax.tree.map(np.testing.assert_array_equal, restore_model(saved), restore_model(whole))


def test_the_network_is_a_run_that_is_opened_exported_and_not_trained_again(done, tmp_path, capsys):
  config, figures = done
  saved = tmp_path / 'run' / config.result
  encoder = open_encoder(str(saved))
  before = open_encoder('random', config.network, seed=config.seed)
  assert jax.tree.structure(encoder.variables) == jax.tree.structure(before.variables)
  moved = jax.tree.map(lambda new, old: not np.array_equal(new, old), encoder.variables, before.variables)
  assert all(jax.tree.leaves(moved['params']))
  export(saved, 'safetensors', tmp_path / 'encoder.safetensors')
  assert load_file(tmp_path / 'encoder.safetensors')
  card = (tmp_path / 'encoder.safetensors.md').read_text()
  assert 'on labels, from the encoder random' in card
  assert 'self-supervised' not in card
  capsys.readouterr()
  assert standalone.evaluate(config) == figures
  assert 'loss' not in capsys.readouterr().out


def test_other_settings_or_weights_do_not_go_on_with_it(task, done, resumed, tmp_path):
  config, _ = done
  kept = (tmp_path / 'run' / config.result / 'config.json').read_text()
  with pytest.raises(UserError, match=r"the encoder's weights was .* Set config.result to another name"):
    standalone.evaluate(config_of((task[0], {**task[1], 'config.seed': 1}), tmp_path / 'run'))
  assert (tmp_path / 'run' / config.result / 'config.json').read_text() == kept
  other, *_ = resumed
  written = json.loads(Path(other.run, 'other', 'config.json').read_text())
  assert (written['started_from'], written['result']) == ('random', 'other')
