"""Images that cannot be decoded: listed in a file, and what a user may do about them."""
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import losses_by_step

from conic_jax.data import inventory, pipeline
from conic_jax.data.folder import Folder
from conic_jax.errors import UserError
from conic_jax.pretraining import training


@pytest.fixture
def damaged(tiny_config, tmp_path):
  """A config on images of which some cannot be decoded; their paths."""
  shutil.copytree(tiny_config.data.dir, tmp_path / 'images')
  paths = [tmp_path / 'images' / 'train' / name
           for name in ('checks/03.png', 'checks/11.png', 'stripes/07.png')]
  for path in paths:
    path.write_bytes(b'no image')
  tiny_config.data.dir, tiny_config.eval.knn, tiny_config.eval.linear = str(tmp_path / 'images'), False, False
  return tiny_config, paths


def listed(config):
  return (Path(config.run) / inventory.UNDECODABLE).read_text().splitlines()


def went_on(config):
  """Trains the second epoch of a run."""
  config.max_steps = 0
  training.pretrain(config)


@pytest.mark.slow
def test_they_may_be_removed_or_mended_and_the_run_goes_on(damaged, tmp_path, capsys):
  config, paths = damaged
  undisturbed = config.copy_and_resolve_references()
  undisturbed.run = str(tmp_path / 'undisturbed')
  training.pretrain(undisturbed)
  config.max_steps = 3
  training.pretrain(config)
  assert f'3 images could not be decoded and were left out: {paths[0]}' in capsys.readouterr().out
  assert listed(config) == [str(path) for path in paths] == listed(undisturbed)
  kept = tmp_path / 'kept'
  shutil.copytree(config.run, kept)

  for path in paths:
    path.unlink()
  went_on(config)
  assert '3 images that could not be decoded are gone: their places stay empty.' in capsys.readouterr().out
  assert losses_by_step(config.run) == losses_by_step(undisturbed.run)

  for path in paths:
    shutil.copy(path.with_name('00.png'), path)
  config.run = str(kept)
  went_on(config)
  assert len(losses_by_step(kept)) == 6
  assert losses_by_step(kept) != losses_by_step(undisturbed.run)


@pytest.mark.slow
def test_another_image_may_not_be_removed(damaged):
  config, paths = damaged
  config.max_steps = 3
  training.pretrain(config)
  paths[0].unlink()
  paths[1].with_name('00.png').unlink()
  config.max_steps = 0
  with pytest.raises(UserError, match='The images are not those that this run began with'):
    training.pretrain(config)


@pytest.mark.slow
def test_a_run_begun_anew_forgets_them(damaged):
  config, paths = damaged
  config.max_steps = 3
  training.pretrain(config)
  shutil.rmtree(Path(config.run) / 'checkpoints')
  for path in paths[1:]:
    path.unlink()
  training.pretrain(config)
  assert listed(config) == [str(paths[0])]


def test_all_are_listed_those_of_earlier_starts_too(tmp_path):
  for index in range(60):
    (tmp_path / f'{index:02d}.png').write_bytes(b'x')
  listing, source = tmp_path / 'undecodable.txt', Folder(str(tmp_path), '')
  for ids in (range(10), range(5, 45)):
    undecodable = pipeline.UndecodableImages(source, listing)
    undecodable.add({'id': np.array(ids), 'valid': np.zeros(len(ids), bool)})
    with pytest.raises(UserError, match=rf'and start again: .*{"" if len(ids) < 20 else " and 20 more"} '
                       rf'\(all in {listing}\)'):
      undecodable.check()
  assert listing.read_text().splitlines() == [f'{tmp_path}/{index:02d}.png' for index in range(45)]


def test_removed_ones_are_not_too_many(tmp_path):
  for index in range(40):
    (tmp_path / f'{index:02d}.png').write_bytes(b'x')
  source = Folder(str(tmp_path), '').with_absent([f'x{index}.png' for index in range(20)])
  undecodable = pipeline.UndecodableImages(source)
  undecodable.add({'id': np.arange(40, 60), 'valid': np.zeros(20, bool)})
  undecodable.check()
  undecodable.add({'id': np.arange(10), 'valid': np.zeros(10, bool)})
  with pytest.raises(UserError, match='10 of 60 images cannot be decoded'):
    undecodable.check()


def test_a_listing_that_cannot_be_written_stops_nothing(tmp_path):
  (tmp_path / 'a.png').write_bytes(b'x')
  undecodable = pipeline.UndecodableImages(Folder(str(tmp_path), ''), tmp_path / 'absent' / 'undecodable.txt')
  undecodable.add({'id': np.array([0]), 'valid': np.array([False])})
  with pytest.raises(UserError, match=r'a\.png\.$'):
    undecodable.check()
