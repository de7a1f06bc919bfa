"""Checkpoints: what is kept, what a failure leaves, what an evaluation reads."""
import gc
import resource
import shutil
import signal
import threading
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conic_jax.errors import UserError
from conic_jax.hardware.mesh import batch_sharding, replicated
from conic_jax.run.checkpoints import Checkpoints, restore_model
from conic_jax.run.state import LossScale, TrainState

CONFIG = '{"method": "conic", "encoder": {"name": "resnet18"}, "views": {}}'


def make_state(mesh, step=0, rows=16, kernel=None):
  params = {'encoder': {'kernel': jnp.full((2, 3), float(step if kernel is None else kernel))}}
  state = TrainState(
    step=jnp.int32(step), updates=jnp.int32(step), params=params, batch_stats={'encoder': {}},
    opt_state=optax.trace(0.9).init(params),
    memories={'rows': jnp.arange(rows * 4.0).reshape(rows, 4)},
    loss_scale=LossScale.create(jnp.float32), rng=jax.random.key(3))
  everywhere = jax.tree.map(lambda _: replicated(mesh), state)
  shardings = everywhere.replace(memories={'rows': batch_sharding(mesh)})
  return jax.jit(_unchanged, out_shardings=shardings)(state)


def _unchanged(state):
  """One function for all states, so that it is traced once."""
  return state


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
  assert restored.memories['rows'].sharding == batch_sharding(mesh8)


def test_a_save_compiles_nothing(checkpoints, mesh8, caplog):
  """On eight devices, with sides that they could share."""
  kernel = jax.device_put(jnp.ones((80, 72)), replicated(mesh8))
  state = make_state(mesh8).replace(params={'encoder': {'kernel': kernel}})
  with jax.log_compiles():
    jax.block_until_ready(jax.jit(lambda x: x + 2)(kernel))
    assert 'XLA compilation' in caplog.text  # So it is told.
    caplog.clear()
    checkpoints.save(state, 1, {})
    checkpoints.wait()
  assert checkpoints.failure is None
  assert 'XLA compilation' not in caplog.text


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


def test_a_field_that_there_was_not_yet_is_no_difference(checkpoints, mesh8):
  checkpoints.save(make_state(mesh8, 1), 1, {'views': {'size': 8, 'crop': [0.1, 1.0]}})
  checkpoints.wait()
  now = {'views': {'size': 8, 'crop': [0.1, 1.0], 'hue': 0.2}}
  assert checkpoints.restore(shapes_of(make_state(mesh8)), now).step == 1
  with pytest.raises(UserError, match='views was'):
    checkpoints.restore(shapes_of(make_state(mesh8)), {'views': {**now['views'], 'size': 16}})


def test_a_disk_that_is_too_small_is_told_and_the_last_checkpoint_stays(checkpoints, mesh8,
                                                                        monkeypatch):
  checkpoints.save(make_state(mesh8, 1), 1, {})
  checkpoints.wait()
  usage = namedtuple('usage', 'total used free')
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(100, 100, 0))
  checkpoints.save(make_state(mesh8, 2), 2, {})
  checkpoints.wait()
  assert 'lacks' in checkpoints.failure
  assert checkpoints.last_step() == 1
  assert 'could not save' in checkpoints.outcome()


def test_a_folder_that_is_gone_does_not_stop_the_training(mesh8, tmp_path):
  """Nothing of the failed save is left: no thread that keeps the process, no coroutine."""
  before = set(threading.enumerate())
  checkpoints = Checkpoints(tmp_path / 'run' / 'checkpoints', keep=2)
  checkpoints.save(make_state(mesh8, 1), 1, {})
  checkpoints.close()
  checkpoints = Checkpoints(tmp_path / 'run' / 'checkpoints', keep=2)
  shutil.rmtree(tmp_path / 'run')
  (tmp_path / 'run').touch()
  checkpoints.save(make_state(mesh8, 2), 2, {})
  checkpoints.wait()
  assert 'could not save' in checkpoints.outcome()
  (tmp_path / 'run').unlink()
  checkpoints.save(make_state(mesh8, 3), 3, {})
  checkpoints.close()
  assert checkpoints.outcome() == f"saved {tmp_path / 'run' / 'checkpoints' / '3'}"
  assert [thread.name for thread in set(threading.enumerate()) - before if not thread.daemon] == []
  gc.collect()


def test_a_model_is_read_alone(checkpoints, mesh8, tmp_path):
  (tmp_path / 'config.json').write_text(CONFIG)
  checkpoints.save(make_state(mesh8, 5), 5, {})
  checkpoints.wait()
  model = restore_model(tmp_path)
  assert set(model) == {'params', 'batch_stats'}
  np.testing.assert_array_equal(model['params']['encoder']['kernel'], 5)
  assert isinstance(model['params']['encoder']['kernel'], np.ndarray)


def test_a_failed_save_costs_only_itself(checkpoints, mesh8, tmp_path, capsys):
  """The limit on the size of files fails one save; the next one is whole and nothing is left over."""
  checkpoints.save(make_state(mesh8, 1), 1, {})
  checkpoints.wait()
  second = make_state(mesh8, 2)  # What it compiles may be cached in a file, too.
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
  try:
    checkpoints.save(second, 2, {})
    checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert 'could not save' in checkpoints.outcome()
  # Collected in a thread that starts, one that is left would wait for itself.
  assert [left._thread for left in gc.get_objects() if type(left).__name__ == '_AsyncManager'
          and left._thread is not None] == []
  assert checkpoints.last_step() == 1
  late = tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp' / 'model'  # As its threads may write it still.
  late.mkdir(parents=True, exist_ok=True)
  checkpoints.save(make_state(mesh8, 3), 3, {})
  checkpoints.wait()
  assert checkpoints.outcome() == f"saved {tmp_path / 'checkpoints' / '3'}"
  assert checkpoints.failure is None
  assert capsys.readouterr().out.count('A checkpoint could not be saved (') == 1
  assert checkpoints.steps() == [1, 3]
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['1', '3']


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_not_read(checkpoints, mesh8, tmp_path, value):
  (tmp_path / 'config.json').write_text(CONFIG)
  checkpoints.save(make_state(mesh8, 5, kernel=value), 5, {})
  checkpoints.wait()
  with pytest.raises(UserError, match=r'/5 has weights that are NaN or infinite \(params\.encoder\.kernel\)'):
    restore_model(tmp_path)


def test_a_bad_state_is_discarded(checkpoints, mesh8):
  for step in (1, 2):
    checkpoints.save(make_state(mesh8, step), step, {})
  checkpoints.discard(2)
  checkpoints.discard(7)
  assert checkpoints.last_step() == 1


def test_reading_a_run_leaves_a_save_under_way_alone(checkpoints, mesh8, tmp_path):
  (tmp_path / 'config.json').write_text(CONFIG)
  checkpoints.save(make_state(mesh8, 5), 5, {})
  checkpoints.wait()
  under_way = tmp_path / 'checkpoints' / '6.orbax-checkpoint-tmp'
  under_way.mkdir()
  restore_model(tmp_path)
  assert under_way.exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
  for content in (None, '{"model_type": "resnet"}', '[1]', '3', '{"method": "x", "encoder": 3, "views": {}}'):
    if content:
      (tmp_path / 'config.json').write_text(content)
    with pytest.raises(UserError, match='is no run'):
      restore_model(tmp_path)
  (tmp_path / 'config.json').write_text(CONFIG)
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(UserError, match='no finished checkpoint yet'):
    restore_model(tmp_path)
