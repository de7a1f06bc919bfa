"""Runs on tars, Parquet files and lists: as on the folder of the same images, and resumed to the bit."""
import shutil
from pathlib import Path

import numpy as np
import pytest
from containers import WRITERS, write_tars
from support import losses_by_step, tiny

from conic_jax.command_line import load
from conic_jax.data import sources
from conic_jax.errors import UserError
from conic_jax.evals import standalone
from conic_jax.pretraining import training

pytestmark = pytest.mark.slow

@pytest.fixture(scope='module')
def held(image_folder, tmp_path_factory):
  """A folder for each kind of source, with the training and test images of `image_folder`."""
  root = tmp_path_factory.mktemp('held')
  for name, write in WRITERS.items():
    for split in ('train', 'test'):
      write(image_folder / split, root / name, split)
  return root


def settings_of(name, dir, run, cache):
  config = tiny(dir, run)
  config.data.name, config.data.cache = name, str(cache)
  config.eval.linear = False
  return config


@pytest.fixture(scope='module')
def on_folder(image_folder, tmp_path_factory):
  """The losses and the accuracy of a run on the folder that nothing stopped."""
  run = tmp_path_factory.mktemp('on_folder') / 'run'
  summary = training.pretrain(settings_of('folder', image_folder, run, run.parent / 'cache'))
  return losses_by_step(run), summary['knn_top1']


@pytest.fixture(scope='module')
def stopped(held, tmp_path_factory):
  """For each kind of source the folder of a run that was stopped after its first epoch, beside its cache."""
  root = tmp_path_factory.mktemp('stopped')
  for name in WRITERS:
    config = settings_of(name, held / name, root / name / 'run', root / name / 'cache')
    config.max_steps, config.eval.knn = 3, False
    training.pretrain(config)
  return root


@pytest.mark.parametrize('name', WRITERS)
def test_a_run_that_is_stopped_and_resumed_equals_the_folders(name, held, stopped, on_folder, tmp_path):
  shutil.copytree(stopped / name, tmp_path, dirs_exist_ok=True)
  config = settings_of(name, held / name, tmp_path / 'run', tmp_path / 'cache')
  summary = training.pretrain(config)
  assert (losses_by_step(config.run), summary['knn_top1']) == on_folder
  assert max(on_folder[0]) == 6


def test_open_splits_are_found_in_each(held):
  for name in WRITERS:
    config = tiny(held / name, 'unused')
    config.data.name = name
    assert sources.splits_of(config.data, ('train', 'val', 'test')) == {'train', 'test'}
  config.data.dir = str(held / 'absent')
  assert sources.splits_of(config.data, ('train',)) == set()


def test_an_evaluation_reads_them(held, tmp_path):
  accuracies = []
  for name in WRITERS:
    config = load('configs/knn.py:folder')
    config.data.name, config.data.dir, config.data.cache = name, str(held / name), str(tmp_path / 'cache')
    config.data.test, config.encoder, config.run = 'test', 'random', str(tmp_path / name)
    config.network.update(name='resnet18', stem='cifar', blocks=(1,), width=0.125)
    config.views.size = config.eval.resize = config.eval.batch_size = 16
    accuracies.append(standalone.evaluate(config)['knn_top1'])
  assert len(set(accuracies)) == 1


def test_shards_that_changed_since_the_run_began_end_a_resume(held, stopped, image_folder, tmp_path):
  shutil.copytree(held / 'wds', tmp_path / 'wds')
  shutil.copytree(stopped / 'wds', tmp_path, dirs_exist_ok=True)
  config = settings_of('wds', tmp_path / 'wds', tmp_path / 'run', tmp_path / 'cache')
  config.eval.knn = False
  for path in (tmp_path / 'wds').glob('train-*.tar'):
    path.unlink()
  write_tars(image_folder / 'train', tmp_path / 'wds', 'train', count=4)
  with pytest.raises(UserError, match=r"number 0 was '3 tar files' \(48 images\) and is '4 tar files'"):
    training.pretrain(config)
  for path in (tmp_path / 'wds').glob('train-*.tar'):
    path.unlink()
  shutil.copytree(held / 'wds', tmp_path / 'wds', dirs_exist_ok=True)
  training.pretrain(config)


def test_an_image_that_cannot_be_decoded_is_masked_and_named(held, tmp_path, capsys):
  for name in ('wds', 'parquet'):
    shutil.copytree(held / name, tmp_path / name)
  shard = tmp_path / 'wds' / 'train-01.tar'
  content = shard.read_bytes()
  assert content.count(b'\x89PNG\r\n\x1a\n')
  shard.write_bytes(content.replace(b'\x89PNG\r\n\x1a\n', b'damaged.', 1))
  config = settings_of('wds', tmp_path / 'wds', tmp_path / 'run', tmp_path / 'cache')
  config.eval.knn = False
  training.pretrain(config)
  named = (Path(config.run) / 'undecodable.txt').read_text().splitlines()
  assert named == [f'{shard}/0016.png']
  assert '1 images could not be decoded' in capsys.readouterr().out
  assert np.isfinite(list(losses_by_step(config.run).values())).all()
