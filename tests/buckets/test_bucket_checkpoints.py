"""Checkpoints in a bucket: kept, restored, and told from those that are damaged or unfinished."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bucket_servers import SERVERS

from conic_jax.buckets.bucket import copy, files_below, open_path, size
from conic_jax.errors import UserError
from conic_jax.hardware.mesh import batch_sharding, replicated
from conic_jax.run.checkpoints import Checkpoints
from conic_jax.run.state import LossScale, TrainState
from conic_jax.run.whole import manifest_path, newest_whole, steps_in

pytestmark = pytest.mark.slow

IDENTITY = {'n': 16}


def state_of(mesh, step):
  params = {'encoder': {'kernel': jnp.full((64, 64), float(step))}}
  state = TrainState(
    step=jnp.int32(step), updates=jnp.int32(step), params=params, batch_stats={'encoder': {}},
    opt_state=optax.trace(0.9).init(params), memories={'rows': jnp.arange(64.0).reshape(16, 4)},
    loss_scale=LossScale.create(jnp.float32), rng=jax.random.key(3))
  everywhere = jax.tree.map(lambda _: replicated(mesh), state)
  return jax.device_put(state, everywhere.replace(memories={'rows': batch_sharding(mesh)}))


@pytest.fixture(scope='module', params=SERVERS)
def saved(request, known, mesh8, tmp_path_factory):
  """The checkpoints of steps 2 and 3, of three that were saved, in a bucket of each kind."""
  name = tmp_path_factory.mktemp('saved').name
  found = open_path(f'{request.param}://bucket/{name}/run/checkpoints', 'test')
  checkpoints = Checkpoints(found, keep=2)
  for step in (1, 2, 3):
    checkpoints.save(state_of(mesh8, step), step, IDENTITY)
  assert checkpoints.outcome() == f'saved {found}/3'
  checkpoints.close()
  return found


@pytest.fixture
def folder(saved, tmp_path):
  """A copy of `saved`, to be damaged."""
  run = saved.parent.parent.parent / tmp_path.name / 'run'
  copy(saved.parent, run)
  return run / 'checkpoints'


def restored(folder, mesh, said):
  checkpoints = Checkpoints(folder, keep=2, say=said.append)
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
                        state_of(mesh, 0))
  try:
    return checkpoints.restore(shapes, IDENTITY)
  finally:
    checkpoints.close()


def largest(checkpoint):
  """The largest object that holds arrays of the model."""
  return max((path for path in files_below(checkpoint / 'model') if path.parent.name == 'd'), key=size)


def test_the_last_ones_are_kept_and_the_newest_is_read(saved, mesh8):
  assert steps_in(saved) == [2, 3]
  assert manifest_path(saved, 3).exists()
  state = restored(saved, mesh8, said=[])
  np.testing.assert_array_equal(state.params['encoder']['kernel'], 3)
  assert state.memories['rows'].sharding == batch_sharding(mesh8)


def test_an_object_that_changed_or_is_gone_is_noticed_and_the_one_before_is_read(folder, mesh8):
  path, said = largest(folder / '3'), []
  path.write_bytes(bytes(size(path)))
  state = restored(folder, mesh8, said)
  assert state.step == 2
  assert 'is not what was written' in said[0]
  assert (folder.parent / 'damaged' / 'checkpoints-3' / 'identity' / 'metadata').exists()
  largest(folder / '2').unlink()
  with pytest.raises(UserError, match=r'No checkpoint in .* is whole \(2: .* is missing\)'):
    restored(folder, mesh8, said)


def test_a_checkpoint_whose_last_object_was_never_written_does_not_count(folder, mesh8):
  (folder / '3' / 'commit_success.txt').unlink()
  assert newest_whole(folder) == (2, {})
  assert restored(folder, mesh8, said=[]).step == 2


def test_nothing_is_saved_while_something_is_in_the_way(saved, mesh8):
  checkpoints = Checkpoints(saved, keep=2, obstacle=lambda: 'the bucket is out of reach')
  checkpoints.save(state_of(mesh8, 4), 4, IDENTITY)
  assert checkpoints.outcome() == ('could not save (the bucket is out of reach); the last good checkpoint is '
                                   f'{saved}/3')
  checkpoints.close()
  assert steps_in(saved) == [2, 3]
