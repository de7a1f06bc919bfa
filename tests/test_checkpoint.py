"""Checkpoints: what is kept, what a failure leaves, what an evaluation reads."""
import shutil
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conic_jax.checkpoint import Checkpoints, restore_model
from conic_jax.errors import UserError
from conic_jax.mesh import batch_sharding, replicated
from conic_jax.state import LossScale, TrainState


def make_state(mesh, step=0, rows=16):
  params = {'encoder': {'kernel': jnp.full((2, 3), float(step))}}
  state = TrainState(
    step=jnp.int32(step), updates=jnp.int32(step), params=params, batch_stats={'encoder': {}},
    opt_state=optax.trace(0.9).init(params),
    method_state={'rows': jnp.arange(rows * 4.0).reshape(rows, 4)},
    loss_scale=LossScale.create(jnp.float32), rng=jax.random.key(3))
  everywhere = jax.tree.map(lambda _: replicated(mesh), state)
  return jax.device_put(state, everywhere.replace(method_state={'rows': batch_sharding(mesh)}))


def shapes_of(state):
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
                      state)


@pytest.fixture
def checkpoints(tmp_path):
  manager = Checkpoints(tmp_path / 'checkpoints', keep=2)
  yield manager
  manager.close()


def test_the_last_ones_are_kept_and_the_newest_is_read(checkpoints, mesh8, tmp_path):
  for step in (1, 2, 3):
    checkpoints.save(make_state(mesh8, step), step, {'n': 16})
  checkpoints.wait()
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['2', '3']
  restored = checkpoints.restore(shapes_of(make_state(mesh8)), {'n': 16})
  assert restored.step == 3
  np.testing.assert_array_equal(restored.params['encoder']['kernel'], 3)
  assert restored.method_state['rows'].sharding == batch_sharding(mesh8)


def test_a_run_without_checkpoints_begins_anew(checkpoints, mesh8):
  assert checkpoints.restore(shapes_of(make_state(mesh8)), {}) is None
  assert checkpoints.last_path() == 'none'


def test_another_n_is_refused_with_the_difference(checkpoints, mesh8):
  checkpoints.save(make_state(mesh8, 1), 1, {'num_images': 16})
  checkpoints.wait()
  with pytest.raises(UserError) as error:
    checkpoints.restore(shapes_of(make_state(mesh8, rows=24)), {'num_images': 24})
  assert 'num_images was 16, is 24' in str(error.value)
  assert 'method_state.rows was (16, 4), is (24, 4)' in str(error.value)


def test_a_disk_that_is_too_small_is_told_and_the_last_checkpoint_stays(checkpoints, mesh8,
                                                                        monkeypatch):
  checkpoints.save(make_state(mesh8, 1), 1, {})
  checkpoints.wait()
  usage = namedtuple('usage', 'total used free')
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(100, 100, 0))
  checkpoints.save(make_state(mesh8, 2), 2, {})
  checkpoints.wait()
  assert 'has 0 MiB left' in checkpoints.failure
  assert checkpoints.last_step() == 1
  assert 'could not save' in checkpoints.outcome()


def test_a_model_is_read_alone_onto_one_device(checkpoints, mesh8, tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  checkpoints.save(make_state(mesh8, 5), 5, {})
  checkpoints.wait()
  model = restore_model(tmp_path)
  assert set(model) == {'params', 'batch_stats'}
  np.testing.assert_array_equal(model['params']['encoder']['kernel'], 5)
  assert len(model['params']['encoder']['kernel'].devices()) == 1


def test_a_folder_that_is_no_run_is_refused(tmp_path):
  with pytest.raises(UserError, match='is no run'):
    restore_model(tmp_path)
  (tmp_path / 'config.json').write_text('{}')
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(UserError, match='no finished checkpoint yet'):
    restore_model(tmp_path)
