"""Damaged checkpoints: each file, damaged in each way, is noticed, and the one before is taken."""
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_checkpoints import CONFIG, make_state, shapes_of

from conic_jax.errors import UserError
from conic_jax.run import manifest, whole
from conic_jax.run.checkpoints import Checkpoints, restore_model

CHECKPOINT_FILES = ('identity/metadata', 'model/_METADATA', 'model/manifest.ocdbt', 'model/data',
                    'training/_METADATA', 'training/manifest.ocdbt', 'training/data')


@pytest.fixture(scope='module')
def saved(mesh8, tmp_path_factory):
  """A run with checkpoints 1 and 2; to be copied."""
  run = tmp_path_factory.mktemp('saved')
  (run / 'config.json').write_text(CONFIG)
  checkpoints = Checkpoints(run / 'checkpoints', keep=2)
  for step in (1, 2):
    checkpoints.save(make_state(mesh8, step), step, {'n': 16})
  checkpoints.close()
  return run


@pytest.fixture
def run(saved, tmp_path):
  return Path(shutil.copytree(saved, tmp_path / 'run'))


def find(checkpoint, name):
  """A file of a checkpoint; 'data' is the largest that holds arrays."""
  if not name.endswith('/data'):
    return checkpoint / name
  return max((checkpoint / name.partition('/')[0]).rglob('d/*'), key=lambda path: path.stat().st_size)


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


DAMAGES = {'flipped': flip, 'emptied': lambda path: path.write_bytes(b''), 'deleted': Path.unlink,
           'cut': lambda path: path.write_bytes(path.read_bytes()[:-1]),
           'longer': lambda path: path.write_bytes(path.read_bytes() + b'\0')}


def restored(run, mesh, said):
  checkpoints = Checkpoints(run / 'checkpoints', keep=2, say=said.append)
  try:
    state = checkpoints.restore(shapes_of(make_state(mesh)), {'n': 16})
    if state is not None:  # And a new one takes its place.
      checkpoints.save(make_state(mesh, 2), 2, {'n': 16})
      checkpoints.wait()
      assert checkpoints.steps() == [1, 2]
    return state
  finally:
    checkpoints.close()


def test_each_save_has_a_manifest_and_goes_with_it(saved, tmp_path, mesh8):
  assert sorted(path.name for path in (saved / 'checksums').iterdir()) == [
    'checkpoints-1.json', 'checkpoints-2.json']
  for step in (1, 2):
    assert whole.damage(saved / 'checkpoints', step) is None
  checkpoints = Checkpoints(Path(shutil.copytree(saved, tmp_path / 'run')) / 'checkpoints', keep=2)
  checkpoints.save(make_state(mesh8, 3), 3, {})
  checkpoints.close()
  assert sorted(path.name for path in (tmp_path / 'run' / 'checksums').iterdir()) == [
    'checkpoints-2.json', 'checkpoints-3.json']


def test_a_manifest_goes_although_its_checkpoint_went_late(run):
  """Orbax may delete a checkpoint after the manifest of its successor was written."""
  (run / 'checksums' / 'checkpoints-0.json').write_text('{}')
  Checkpoints(run / 'checkpoints', keep=2).close()
  assert sorted(path.name for path in (run / 'checksums').iterdir()) == [
    'checkpoints-1.json', 'checkpoints-2.json']


@pytest.mark.slow
@pytest.mark.parametrize('how', DAMAGES)
@pytest.mark.parametrize('name', CHECKPOINT_FILES)
def test_the_one_before_a_damaged_one_is_taken(run, mesh8, capsys, name, how):
  path = find(run / 'checkpoints' / '2', name)
  DAMAGES[how](path)
  relative = str(path.relative_to(run / 'checkpoints' / '2'))
  kernel = restore_model(run)['params']['encoder']['kernel']
  if name.startswith('training/'):
    np.testing.assert_array_equal(kernel, 2)  # An evaluation does not read it.
    assert not capsys.readouterr().err
  else:
    np.testing.assert_array_equal(kernel, 1)
    told = capsys.readouterr().err
    assert f'The checkpoint {run}/checkpoints/2 is damaged (' in told
    assert f'{run}/checkpoints/1 is read.' in told
  said = []
  assert restored(run, mesh8, said).step == 1
  assert len(said) == 1
  assert f'checkpoints/2 is damaged ({relative if how == "deleted" else ""}' in said[0]
  assert f'it is kept in {run}/damaged/checkpoints-2, and the run goes on from {run}/checkpoints/1' in said[0]
  assert (run / 'damaged' / 'checkpoints-2').is_dir()


@pytest.mark.parametrize('stray', ['7', 'notes', '9.orbax-checkpoint-tmp'])
def test_stray_folders_are_no_checkpoints(run, mesh8, stray):
  (run / 'checkpoints' / stray).mkdir()
  np.testing.assert_array_equal(restore_model(run)['params']['encoder']['kernel'], 2)
  said = []
  assert restored_step(run, mesh8, said) == 2
  assert len(said) == (stray == '7')


def restored_step(run, mesh, said):
  checkpoints = Checkpoints(run / 'checkpoints', keep=2, say=said.append)
  try:
    return int(checkpoints.restore(shapes_of(make_state(mesh)), {'n': 16}).step)
  finally:
    checkpoints.close()


def test_where_none_is_whole_nothing_begins_anew(run, mesh8):
  for step in ('1', '2'):
    flip(find(run / 'checkpoints' / step, 'model/data'))
  for _ in range(2):  # Nor the second time.
    with pytest.raises(UserError, match=r'No checkpoint in .* is whole \(2: the content of model/'):
      Checkpoints(run / 'checkpoints', keep=2)
    with pytest.raises(UserError, match='is whole'):
      restore_model(run)
  assert sorted(path.name for path in (run / 'checkpoints').iterdir()) == ['1', '2']


def test_without_a_manifest_it_is_read_and_damage_is_a_sentence(run, mesh8):
  shutil.rmtree(run / 'checksums')
  np.testing.assert_array_equal(restore_model(run)['params']['encoder']['kernel'], 2)
  find(run / 'checkpoints' / '2', 'model/data').write_bytes(b'')
  with pytest.raises(UserError, match=r'checkpoints/2 cannot be read \(.+\): move it out of '):
    restore_model(run)
  with pytest.raises(UserError, match='cannot be read'):
    restored_step(run, mesh8, [])


@pytest.mark.parametrize('content', ['', '[]', '{"files": {"a": 1}}', '{"files": 3}'])
def test_a_damaged_manifest_is_damage(run, content):
  whole.manifest_path(run / 'checkpoints', 2).write_text(content)
  assert 'checkpoints-2.json cannot be read' in whole.damage(run / 'checkpoints', 2)
  assert whole.newest_whole(run / 'checkpoints')[0] == 1


def test_verifying_can_be_left_out(run):
  flip(find(run / 'checkpoints' / '2', 'training/data'))
  assert whole.newest_whole(run / 'checkpoints', verify=False) == (2, {})


def test_a_manifest_names_the_first_difference(tmp_path):
  folder, path = tmp_path / 'folder', tmp_path / 'manifest.json'
  (folder / 'deep').mkdir(parents=True)
  (folder / 'a').write_text('one')
  (folder / 'deep' / 'b').write_text('two')
  manifest.write(folder, path)
  assert manifest.damage(folder, path) is None
  (folder / 'new').touch()
  assert manifest.damage(folder, path) is None
  (folder / 'deep' / 'b').write_text('owt')
  assert manifest.damage(folder, path) == 'the content of deep/b is not what was written'
  assert manifest.damage(folder, path, lambda name: name == 'a') is None
  (folder / 'a').write_text('on')
  assert manifest.damage(folder, path) == 'a has 2 bytes instead of 3'
  (folder / 'a').unlink()
  assert manifest.damage(folder, path) == 'a is missing'
