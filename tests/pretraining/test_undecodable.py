"""Images that cannot be decoded: listed in a file, and what a user may do about them."""
import contextlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import losses_by_step, tiny

from conic_jax.data import inventory, pipeline
from conic_jax.data.folder import Folder
from conic_jax.errors import UserError
from conic_jax.pretraining import training

DAMAGED = ('checks/03.png', 'checks/11.png', 'stripes/07.png')


def on_images_of(root):
  """The config of a run in a folder on the images there, and the paths of those that cannot be decoded."""
  config = tiny(root / 'images', root / 'run')
  config.eval.knn = config.eval.linear = False
  return config, [root / 'images' / 'train' / name for name in DAMAGED]


@pytest.fixture(scope='module')
def saved(image_folder, tmp_path_factory):
  """A folder with images and a run on them that was stopped after its first epoch, and what it printed."""
  root = tmp_path_factory.mktemp('saved')
  shutil.copytree(image_folder, root / 'images')
  config, paths = on_images_of(root)
  for path in paths:
    path.write_bytes(b'no image')
  config.max_steps = 3
  with contextlib.redirect_stdout(io.StringIO()) as shown:
    training.pretrain(config)
  return root, shown.getvalue()


@pytest.fixture
def stopped(saved, tmp_path):
  """The config of a copy of that run, which goes on to its end, and the paths of the damaged images."""
  shutil.copytree(saved[0], tmp_path, dirs_exist_ok=True)
  return on_images_of(tmp_path)


def listed(config):
  return (Path(config.run) / inventory.UNDECODABLE).read_text().splitlines()


@pytest.mark.slow
def test_they_are_told_and_listed(saved):
  root, shown = saved
  config, paths = on_images_of(root)
  assert f'3 images could not be decoded and were left out: {paths[0]}' in shown
  assert listed(config) == [str(path) for path in paths]


@pytest.mark.slow
def test_they_may_be_removed_or_mended_and_the_run_goes_on(stopped, tmp_path, capsys):
  config, paths = stopped
  undisturbed = config.copy_and_resolve_references()
  undisturbed.run = str(tmp_path / 'undisturbed')
  training.pretrain(undisturbed)
  assert listed(undisturbed) == [str(path) for path in paths]
  kept = tmp_path / 'kept'
  shutil.copytree(config.run, kept)

  for path in paths:
    path.unlink()
  training.pretrain(config)
  assert '3 images that could not be decoded are gone: their places stay empty.' in capsys.readouterr().out
  assert losses_by_step(config.run) == losses_by_step(undisturbed.run)

  for path in paths:
    shutil.copy(path.with_name('00.png'), path)
  config.run = str(kept)
  training.pretrain(config)
  assert len(losses_by_step(kept)) == 6
  assert losses_by_step(kept) != losses_by_step(undisturbed.run)


@pytest.mark.slow
def test_another_image_may_not_be_removed(stopped):
  config, paths = stopped
  paths[0].unlink()
  paths[1].with_name('00.png').unlink()
  with pytest.raises(UserError, match='The images are not those that this run began with'):
    training.pretrain(config)


@pytest.mark.slow
def test_a_run_begun_anew_forgets_them(stopped):
  config, paths = stopped
  shutil.rmtree(Path(config.run) / 'checkpoints')
  for path in paths[1:]:
    path.unlink()
  config.max_steps = 3
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
