"""The sampled classifier's rows, wherever they are kept, against SGD over all rows in float64."""
import functools
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clusters import ended, finish, fork
from etils import epath
from support import reserved_port
from xla_flags import xla_flags

from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.memories import device_window, instance_rows
from conic_jax.memories.host import HostSettings, NotCopied
from conic_jax.memories.host_rows import HostRows
from conic_jax.memories.store import HostStore, Layout, open_store
from conic_jax.memories.window import first_classes
from conic_jax.optim import cosine_schedule

N, SLOTS, BATCH, DIM, SEED = 61, 24, 8, 4, 3
STEPS = 3 * (N // BATCH)
NORM, MOMENTUM, WEIGHT_DECAY = 0.7, 0.9, 1e-2
SGD = instance_rows.RowsSgd(NORM, 1.0, MOMENTUM, WEIGHT_DECAY)
KEY = jax.random.key(SEED)
RATES = np.asarray(jax.jit(jax.vmap(cosine_schedule(0.3, STEPS, 4)))(np.arange(STEPS)))
SKIPPED = np.arange(STEPS) % 5 == 2
KINDS = ['device', 'host', 'disk']


def batch_ids(step):
  """Random, so that classes come back after one step or after twenty, and twice in a batch."""
  return np.random.default_rng([7, step]).integers(0, N, BATCH)


def gradients(step):
  return np.random.default_rng([9, step]).standard_normal((N, DIM)).astype(np.float32)


def succeed(commands, devices):
  """Runs scripts of this folder at once, each (name, *arguments) on so many devices, to their ends."""
  here = Path(__file__).parent
  with ended([fork([here / name, *arguments], XLA_FLAGS=xla_flags(devices),
                   PYTHONPATH=os.pathsep.join(map(str, here.parents[:2])))
              for name, *arguments in commands]) as processes:
    for process in processes:
      code, out, err = finish(process, 240)
      assert code == 0, (out, err)


@functools.cache
def compiled(mesh, on_device):
  """(init, step, copy, everywhere, shardings) of a state that is no more than the window."""
  def init():
    classes = first_classes(SLOTS, N, SEED, BATCH)
    return {'step': jnp.int32(0), 'updates': jnp.int32(0),
            'window': device_window.init(KEY, classes, N, DIM, NORM, BATCH, mesh, on_device)}

  def step(state, inputs, gradient, lr, apply):
    window, outgoing = device_window.exchange(
      state['window'], inputs, state['step'], state['updates'], lr, sgd=SGD, mesh=mesh)
    old = window.rows
    gradient = jnp.pad(gradient[window.classes], ((0, len(old.weights) - SLOTS), (0, 0)))
    momentum = MOMENTUM * old.momentum + gradient + WEIGHT_DECAY * old.weights
    rows = instance_rows.Rows(old.weights - lr * momentum, momentum)
    rows = jax.tree.map(lambda new, old: jnp.where(apply, new, old), rows, old)
    return {'step': state['step'] + 1, 'updates': state['updates'] + apply.astype(jnp.int32),
            'window': window.replace(rows=rows)}, outgoing

  shardings = meshes.shardings(jax.eval_shape(init), device_window.partition_rules(mesh, on_device), mesh)
  step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, meshes.replicated(mesh)))
  copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state), out_shardings=shardings)
  everywhere = jax.jit(lambda tree: tree, out_shardings=meshes.replicated(mesh))
  return jax.jit(init, out_shardings=shardings), step, copy, everywhere, shardings


class Trainer:
  """What a training loop does with the classifier and its host; its gradients are random."""

  def __init__(self, folder, mesh, kind, ids=batch_ids, remote=None):
    self.init, self.step_fn, self.copy, self.everywhere, self.shardings = compiled(mesh, kind == 'device')
    self.state, self.steps_done, self.folder, self.kind = self.init(), 0, folder, kind
    settings = HostSettings(folder=folder, batch_ids=ids, batch_size=BATCH, last_step=STEPS, save_every=5,
                            keep=3, remote=remote)
    self.host = HostRows(settings, mesh, kind=kind, num_instances=N, dim=DIM, seed=SEED, sgd=SGD)

  def start(self, saved=None):
    """Begins, or goes on from a `saved` state."""
    if saved is not None:
      self.state = jax.device_put(saved, self.shardings, may_alias=False)
      self.steps_done = int(saved['step'])
    self.host.start(self.state['window'], self.steps_done, saved is None)
    return self

  def advance(self):
    step = self.steps_done
    inputs = self.host.inputs(step)
    self.state, outgoing = self.step_fn(self.state, inputs, gradients(step), RATES[step], not SKIPPED[step])
    self.host.receive(step, outgoing)
    self.steps_done += 1
    return inputs['slots']

  def save(self, kept=()):
    """A copy of the state, as a checkpoint has it."""
    self.host.sync(self.steps_done, kept)
    return self.copy(self.state)

  def outside(self):
    """What this process keeps outside the window, after `save` and `close`: ids, rows [k, 2, D], seen."""
    if self.kind == 'device':
      outside = jax.device_get(self.everywhere(self.state['window'].outside))
      return np.arange(N), outside.rows[:N], outside.seen[:N]
    layout = Layout(N, DIM, SEED, jax.process_index(), jax.process_count())
    store = open_store(self.kind, self.folder, layout, self.steps_done)
    stored = store.read(np.array(layout.ids))
    store.close()
    first = np.asarray(instance_rows.initial_rows(KEY, jnp.arange(N), DIM, NORM))
    first = np.stack([first, np.zeros_like(first)], axis=1)[layout.ids.start:layout.ids.stop]
    rows = np.where(stored.written[:, None, None], stored.rows, first)
    return np.array(layout.ids), rows, stored.seen


class DenseSGD:
  """Float64, all N rows at every step; the gradient of a row outside the window is zero."""

  def __init__(self):
    self.weights = np.asarray(instance_rows.initial_rows(KEY, jnp.arange(N), DIM, NORM), np.float64)
    self.momentum = np.zeros_like(self.weights)

  def advance(self, step, inside):
    if not SKIPPED[step]:
      gradient = np.zeros((N, DIM))
      gradient[inside] = gradients(step)[inside]
      self.momentum = MOMENTUM * self.momentum + gradient + WEIGHT_DECAY * self.weights
      self.weights = self.weights - np.float64(RATES[step]) * self.momentum

  @property
  def rows(self):
    return np.stack([self.weights, self.momentum], axis=1)


def brought_up_to_date(row, seen):
  """One row after the steps from `seen` on without a gradient, one after another in float64."""
  weights, momentum = row.astype(np.float64)
  for step in range(seen, STEPS):
    if not SKIPPED[step]:
      momentum = MOMENTUM * momentum + WEIGHT_DECAY * weights
      weights = weights - np.float64(RATES[step]) * momentum
  return np.stack([weights, momentum])


def check_against_dense(folder, mesh, kind):
  trainer, dense = Trainer(folder, mesh, kind).start(), DenseSGD()
  entered = set()
  for step in range(STEPS):
    slots = np.asarray(trainer.everywhere(trainer.advance()))
    window = trainer.state['window']
    rows, inside = jax.device_get((trainer.everywhere(window.rows), window.classes))
    entered |= set(inside.tolist())
    np.testing.assert_array_equal(inside[slots], batch_ids(step))
    dense.advance(step, inside)
    rows = np.stack([rows.weights, rows.momentum], axis=1)[:SLOTS]
    np.testing.assert_allclose(rows, dense.rows[inside], atol=1e-5 * np.abs(dense.rows).max())
  assert window.rows.weights.sharding.is_equivalent_to(meshes.batch_sharding(mesh), 2)
  assert len(entered) < N, 'a row that was never inside is part of the test'

  trainer.save()
  trainer.host.close()
  ids, rows, seen = trainer.outside()
  for name, row, since in zip(ids, rows, seen):
    if name not in inside:
      now = brought_up_to_date(row, since)
      np.testing.assert_allclose(now, dense.rows[name], atol=1e-5 * np.abs(dense.rows).max())


def check_what_one_cannot_copy(folder, mesh):
  """Two processes with a bucket, where a file lies in the way of the second's rows."""
  bucket, own = epath.Path(folder) / 'bucket', folder / f'own-{jax.process_index()}'
  trainer = Trainer(own, mesh, 'disk', remote=bucket).start()
  in_the_way = Path(bucket) / 'process-1-of-2'
  if jax.process_index() == 1:
    in_the_way.touch()
  trainer.advance()
  told = r'^process 1 could not copy its rows' if jax.process_index() == 0 else (
    rf'^{bucket} could not be written \(')
  with pytest.raises(NotCopied, match=told):
    trainer.save()
  if jax.process_index() == 1:
    in_the_way.unlink()
  trainer.advance()
  trainer.save()
  trainer.host.close()
  assert (bucket / f'process-{jax.process_index()}-of-2' / '2.json').exists()


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_every_row_is_what_dense_sgd_makes_of_it(mesh, kind, tmp_path):
  check_against_dense(tmp_path, mesh, kind)


@pytest.mark.slow
def test_two_processes_keep_a_part_each(tmp_path):
  with reserved_port() as port:
    succeed([['host_rows_process.py', index, port, tmp_path] for index in range(2)], devices=2)


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_a_run_that_was_killed_goes_on_to_the_bit(mesh8, kind, tmp_path):
  whole = Trainer(tmp_path / 'whole', mesh8, kind).start()
  killed = Trainer(tmp_path / 'killed', mesh8, kind).start()
  saves = {}
  for step in range(10):
    whole.advance()
    killed.advance()
    if step in (2, 6):
      saves[step + 1] = killed.save(list(saves))
  killed.host.close()
  for kept in (7, 3):
    again = Trainer(tmp_path / 'killed', mesh8, kind).start(saves[kept])
    while again.steps_done < STEPS:
      again.advance()
      if again.steps_done == 12:
        again.save([3])
    last = again.save([3])
    again.host.close()
    while whole.steps_done < STEPS:
      whole.advance()
    expected = whole.save()
    jax.tree.map(np.testing.assert_array_equal, last['window'].replace(rng=None),
                 expected['window'].replace(rng=None))
    for mine, other in zip(again.outside(), whole.outside()):
      np.testing.assert_array_equal(mine, other)
  whole.host.close()


def test_an_error_of_the_worker_reaches_the_loop_as_it_is(mesh8, tmp_path):
  trainer = Trainer(tmp_path, mesh8, 'host', lambda step: np.full(BATCH, N if step == 5 else 0)).start()
  for _ in range(5):
    trainer.advance()
  with pytest.raises(UserError, match='step 5 holds id 61'):
    trainer.advance()
  with pytest.raises(UserError, match='step 5 holds id 61'):
    trainer.save()
  trainer.host.close()


def test_the_store_is_closed_when_the_worker_is_done_with_it(mesh8, tmp_path, monkeypatch):
  at_work, begun, done, done_at_close = threading.Event(), [], [], []

  def slow_ids(step):
    begun.append(step)
    at_work.set()
    time.sleep(0.2)
    done.append(step)
    return batch_ids(step)
  monkeypatch.setattr(HostStore, 'close', lambda self: done_at_close.extend(done))
  trainer = Trainer(tmp_path, mesh8, 'host', slow_ids).start()
  assert at_work.wait(60)
  trainer.host.close()
  assert done_at_close == begun != []


def test_a_process_that_keeps_no_row_has_nothing_to_tell(mesh8, tmp_path):
  """As of 61 rows the last of 32 processes; it needs no rates either."""
  trainer, saved = Trainer(tmp_path, mesh8, 'host'), None
  for _ in range(2):
    trainer.host._layout = Layout(N, DIM, SEED, process_index=31, process_count=32)
    trainer.start(saved)
    inputs = trainer.host.inputs(trainer.steps_done)
    assert not any(np.any(inputs[name]) for name in ('origin', 'missing', 'products', 'rows'))
    saved = trainer.save()
    trainer.host.close()
    trainer = Trainer(tmp_path, mesh8, 'host')


def test_a_store_that_cannot_be_written_is_told_before_the_next_checkpoint(mesh8, tmp_path, monkeypatch):
  def full_disk(*_):
    raise UserError('no room')
  monkeypatch.setattr(HostStore, 'write', full_disk)
  trainer = Trainer(tmp_path, mesh8, 'host').start()
  trainer.advance()
  with pytest.raises(UserError, match='no room'):
    trainer.save()
  trainer.host.close()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('name', 'message'), [
  ('settings.json', r'settings\.json is damaged: bring the folder back'),
  ('rates-0', r'rates-0 or its checksums are damaged at step 3: bring the folder back'),
  ('rates-0.sums', r'rates-0 or its checksums are damaged at step 3: bring the folder back')])
def test_damage_is_told_before_anything_is_changed(mesh8, kind, name, message, tmp_path):
  trainer = Trainer(tmp_path, mesh8, kind).start()
  for _ in range(5):
    trainer.advance()
  saved = trainer.save()
  for _ in range(3):
    trainer.advance()
  trainer.save([5])
  trainer.host.close()
  data = bytearray((tmp_path / name).read_bytes())
  data[12] ^= 1
  (tmp_path / name).write_bytes(data)
  content = lambda: {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  before, again = content(), Trainer(tmp_path, mesh8, kind)
  with pytest.raises(UserError, match=message):
    again.start(saved)
  again.host.close()
  assert content() == before


def test_a_disk_too_small_is_told_before_training(mesh8, tmp_path, monkeypatch):
  monkeypatch.setattr('shutil.disk_usage', lambda _: SimpleNamespace(free=100))
  trainer = Trainer(tmp_path, mesh8, 'disk')
  with pytest.raises(UserError, match=r'needs .* free room'):
    trainer.start()
  trainer.host.close()
