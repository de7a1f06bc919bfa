"""Checkpoints of a run. The only module that imports Orbax."""
import contextlib
import logging
import queue
import shutil
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.path import atomicity

from conic_jax.buckets.bucket import is_remote
from conic_jax.errors import UserError, first_line
from conic_jax.hardware.processes import run_everywhere
from conic_jax.run.finite import check_finite
from conic_jax.run.orbax_s3 import teach_orbax
from conic_jax.run.run_config import read_config, say_unknown
from conic_jax.run.state import TrainState
from conic_jax.run.whole import ManifestWriter, newest_whole, of_model, set_aside, steps_in
from conic_jax.terminal import print_line

# What an evaluation reads; only training needs the rest.
_MODEL_FIELDS = ('params', 'batch_stats')
# Names in the files that differ from the fields', so that older checkpoints stay readable.
_STORED_NAMES = {'memories': 'method_state'}


def _split(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
  """The model's and the training's parts of a state, as dicts."""
  fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
  model = {name: fields.pop(name) for name in _MODEL_FIELDS}
  return model, {_STORED_NAMES.get(name, name): value for name, value in fields.items()}


def _first_copy(leaf: jax.Array) -> jax.Array:
  """One device's copy of an array that all devices of one process have; any other array as it is.

  Orbax has each device write a part of such an array, and every part is a program to compile.
  """
  alone = jax.process_count() == 1 and leaf.is_fully_replicated
  return leaf.addressable_data(0) if alone else leaf


class _OrbaxLog(logging.Filter):
  """Keeps Orbax's log off the terminal, and the first error that its threads log after `error` was cleared.

  In a cluster that is the only sign of a failed save: the threads then wait for the others, which wait for
  them.
  """

  def __init__(self):
    super().__init__()
    self.error: BaseException | None = None

  def filter(self, record: logging.LogRecord) -> bool:
    if 'orbax' not in record.pathname and 'orbax' not in record.getMessage():
      return True
    if record.exc_info and record.levelno >= logging.ERROR:
      self.error = self.error or record.exc_info[1]
    return False


# Orbax does not await these after a failure.
_LEFT_COROUTINES = "coroutine '(_?async_serialize|_serialize_arrays|BasePyTree|cancellable)"
# Parts of a manager that raise their error once when it is closed, and one time more.
_PARTS = 4


def _quieten_orbax() -> _OrbaxLog:
  """The log of Orbax, whose chatter is left out of the whole process: threads may outlive a failed save."""
  absl = logging.getLogger('absl')
  if found := next((known for known in absl.filters if isinstance(known, _OrbaxLog)), None):
    return found
  log, unraisable, in_thread = _OrbaxLog(), sys.unraisablehook, threading.excepthook

  def of_native_threads(told: Any) -> None:
    if not (isinstance(told.exc_value, RuntimeError) and str(told.exc_value) == 'Event loop is closed'):
      unraisable(told)

  def of_threads(told: threading.ExceptHookArgs) -> None:
    if not any('orbax' in frame.f_code.co_filename for frame, _ in traceback.walk_tb(told.exc_traceback)):
      in_thread(told)

  absl.addFilter(log)
  logging.getLogger('asyncio').addFilter(log)
  sys.unraisablehook, threading.excepthook = of_native_threads, of_threads
  warnings.filterwarnings('ignore', _LEFT_COROUTINES, RuntimeWarning)
  return log


def _opened_by_orbax(folder: Any) -> Any:
  """A folder of checkpoints as Orbax takes it."""
  if not is_remote(folder):
    return folder.absolute()
  if str(folder).startswith('s3://'):
    teach_orbax()
  return folder


def _manager(folder: Any, keep: int | None, clean: bool = False) -> ocp.CheckpointManager:
  # Where a folder cannot be made, threads that wait for it would keep the process for ten minutes.
  at_once = ocp.AsyncOptions(create_directories_asynchronously=False)
  # A bucket cannot rename a folder: the last object that is written says that a checkpoint is whole.
  options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=clean,
                                         async_options=at_once, temporary_path_class=(
                                           atomicity.CommitFileTemporaryPath if is_remote(folder) else None))
  handlers = {'model': ocp.StandardCheckpointHandler(), 'training': ocp.StandardCheckpointHandler(),
              'identity': ocp.JsonCheckpointHandler()}
  return ocp.CheckpointManager(_opened_by_orbax(folder), options=options, item_handlers=handlers)


def _close_failed(manager: ocp.CheckpointManager) -> None:
  """Closes a manager whose save failed, so that none of its threads is left to wait for.

  Garbage that still has one may be collected while another thread starts, and CPython then waits for a lock
  for ever.
  """
  for _ in range(_PARTS):
    with contextlib.suppress(Exception):
      manager.close()
      return


def _reader_of_models(folder: Any) -> ocp.CheckpointManager:
  """A manager that reads models alone, whatever the state of the rest."""
  _quieten_orbax()
  return ocp.CheckpointManager(_opened_by_orbax(folder), options=ocp.CheckpointManagerOptions(read_only=True),
                               item_handlers={'model': ocp.StandardCheckpointHandler()})


# Characters of an error: TensorStore's go on for thousands.
_TOLD = 300
_REMEDY = 'Set config.run to another folder, or go back to the settings in its config.json.'


class Checkpoints:
  """Checkpoints of one run: asynchronous and atomic; the last `keep` are kept.

  Damaged ones that are newer than the newest that is whole are set aside. A failed save does not stop the
  training: its message is shown, and `failure` holds it until the next save. In a cluster, a save is skipped
  if a process could not write; one that fails all the same ends every process, as its parts wait for each
  other.

  Args:
    folder: their folder, of this machine or in a bucket.
    keep: how many to keep.
    say: shows a line.
    verify: whether to compare the newest with the hashes of what was saved.
    obstacle: says why nothing may be saved now, None if it may; asked in the first process before each save.

  Raises:
    UserError: if there are checkpoints and none is whole.
  """

  def __init__(self, folder: Any, keep: int, say: Callable[[str], None] = print_line, verify: bool = True,
               obstacle: Callable[[], str | None] = lambda: None):
    self._given_obstacle, self._say, self._known = obstacle, say, list[int]()
    self._folder, self._keep, self._lost, self._leftovers = folder, keep, False, False
    self.failure: str | None = None
    self._told: str | None = None
    self._log = _quieten_orbax()
    run_everywhere(lambda: self._set_damaged_aside(verify, say))
    self._manager: ocp.CheckpointManager | None = _manager(folder, keep, clean=True)
    self._manifests = ManifestWriter(folder)

  def last_step(self) -> int | None:
    """The step of the last good checkpoint."""
    return max(self.steps(), default=None)

  def steps(self) -> list[int]:
    """The steps of the good checkpoints, in ascending order."""
    try:
      self._known = sorted(self._opened().all_steps())
    except OSError:  # The folder is gone, or the bucket out of reach.
      self._known = self._known if is_remote(self._folder) else []
    return self._known

  def last_path(self) -> str:
    """The folder of the last good checkpoint, or 'none'."""
    step = self.last_step()
    return 'none' if step is None else str(self._folder / str(step))

  def outcome(self) -> str:
    """Outcome of the last save."""
    if not self.failure:
      return f'saved {self.last_path()}'
    return f'could not save ({self.failure}); the last good checkpoint is {self.last_path()}'

  def save(self, state: TrainState, step: int, identity: Mapping[str, Any]) -> None:
    """Starts saving a state, once the pending save has finished; a resume must match `identity`."""
    self.wait()
    if not self.failure:
      self._told = None
    self.failure, self._log.error = None, None
    if obstacle := self._obstacle(state):
      self._fail(obstacle)
      return
    model, training = _split(jax.tree.map(_first_copy, state))
    self._guard(lambda manager: manager.save(step, args=ocp.args.Composite(
      model=ocp.args.StandardSave(model), training=ocp.args.StandardSave(training),
      identity=ocp.args.JsonSave(dict(identity))), force=True))
    if jax.process_index() == 0:
      self._manifests.expect(step)

  def leave_out(self, reason: str) -> None:
    """Saves nothing this time, as what belongs to the checkpoint could not be stored."""
    self._fail(reason)

  def wait(self) -> None:
    """Waits for the pending save, and removes the leftovers of failed ones."""
    self._guard(self._finish)
    self._manifests.ended()
    if self._leftovers and jax.process_index() == 0:
      # Threads of a failed save may go on writing for a while: each wait looks again.
      with contextlib.suppress(Exception):
        for unfinished in self._folder.glob('*.orbax-checkpoint-tmp*'):
          unfinished.rmtree() if is_remote(unfinished) else shutil.rmtree(unfinished, ignore_errors=True)

  def discard(self, step: int) -> None:
    """Deletes the checkpoint of a step, if it exists: its state turned out to be bad."""
    self.wait()
    if step in self.steps():
      self._guard(lambda manager: manager.delete(step))

  def close(self) -> None:
    """Waits for the pending save and releases the manager's resources."""
    if not self._lost:
      self.wait()
      self._guard(lambda manager: manager.close())
    self._manifests.close()

  def restore(self, shapes: TrainState, identity: Mapping[str, Any], remedy: str = _REMEDY
              ) -> TrainState | None:
    """The state of the last checkpoint; None if there is none.

    Args:
      shapes: the state's shapes, types and shardings.
      identity: what the checkpoint must match; what it does not hold was not recorded yet.
      remedy: what to do if it does not.

    Raises:
      UserError: naming each difference, if the checkpoint is another run's.
    """
    step = self.last_step()
    if step is None:
      return None
    with _readable(self._folder / str(step)):
      saved = self._opened().restore(
        step, args=ocp.args.Composite(identity=ocp.args.JsonRestore()))['identity']
      metadata = self._opened().item_metadata(step)
    differences = [f'{name} was {saved.get(name)!r}, is {value!r}'
                   for name, value in identity.items()
                   if name in saved and _known(saved[name], value) != value]
    model, training = _split(shapes)
    differences += _shape_differences(metadata['model'], model)
    differences += _shape_differences(metadata['training'], training)
    if differences:
      raise UserError(f'The checkpoint {self.last_path()} does not fit this configuration: '
                      f'{"; ".join(differences[:5])}. {remedy}')
    with _readable(self._folder / str(step)):
      restored = self._opened().restore(step, args=ocp.args.Composite(
        model=ocp.args.StandardRestore(model), training=ocp.args.StandardRestore(training)))
    training = {name: restored['training'][_STORED_NAMES.get(name, name)]
                for name in TrainState.__dataclass_fields__ if name not in _MODEL_FIELDS}
    return TrainState(**restored['model'], **training)

  def _set_damaged_aside(self, verify: bool, say: Callable[[str], None]) -> None:
    if jax.process_index() == 0:
      step, damaged = newest_whole(self._folder, verify)
      if step is not None:
        set_aside(self._folder, damaged, step, say)

  def _obstacle(self, state: TrainState) -> str | None:
    """Why some process could not write its part of a state, as far as is known before; None if all can."""
    given = self._given_obstacle() if jax.process_index() == 0 else None
    needed = sum(shard.data.nbytes for leaf in jax.tree.leaves(state)
                 for shard in leaf.addressable_shards if shard.replica_id == 0)
    own = given or _shortage(self._folder, needed)
    if jax.process_count() == 1:
      return own
    own = own or _cannot_write(self._folder / f'.process-{jax.process_index()}', min(needed, _TRIED))
    found = multihost_utils.process_allgather(_as_bytes(own or ''))
    return next(filter(None, map(_as_text, found)), None)

  def _opened(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._manager = _manager(self._folder, self._keep)
    return self._manager

  def _guard(self, action: Callable[[ocp.CheckpointManager], Any]) -> None:
    """Runs an action of the manager; the training must go on even if saving fails.

    A failed manager keeps raising the same error, so the next action opens a new one.

    Raises:
      UserError: in a cluster, as the other processes wait for what failed here.
    """
    try:
      action(self._opened())
    except Exception as error:
      if jax.process_count() > 1:
        self._lost = True
        last = max(steps_in(self._folder), default=None)  # The manager counts the failed one.
        raise UserError(f'The checkpoint could not be saved ({first_line(error, _TOLD)}); the last good one '
                        f'is {"none" if last is None else self._folder / str(last)}. Mend the cause, and '
                        'start all processes again with the same command.') from error
      self._fail(first_line(error, _TOLD))
      failed, self._manager = self._manager, None
      if failed is not None:
        _close_failed(failed)

  def _finish(self, manager: ocp.CheckpointManager) -> None:
    """Waits for the pending save; in a cluster, only until it has failed in this process."""
    if jax.process_count() == 1:
      manager.wait_until_finished()
      return
    ended: queue.Queue[Exception | None] = queue.Queue()

    def wait() -> None:
      try:
        manager.wait_until_finished()
      except Exception as error:
        ended.put(error)
      else:
        ended.put(None)

    threading.Thread(target=wait, name='wait for a save', daemon=True).start()
    while self._log.error is None:
      with contextlib.suppress(queue.Empty):
        if (error := ended.get(timeout=_LOOK)) is not None:
          raise error
        return
    raise OSError(str(self._log.error))

  def _fail(self, message: str) -> None:
    self.failure, self._leftovers = message, True
    if message != self._told:
      self._say(f'A checkpoint could not be saved ({message}): training goes on without it.')
      self._told = message


# Bytes of the file that is tried before a save, at most: a disk's free space is known besides.
_TRIED = 2**20
# Bytes of a message between processes.
_MESSAGE = 300
# Seconds between two looks at a save.
_LOOK = 0.05


def _shortage(folder: Any, needed: int) -> str | None:
  """What a folder's disk lacks for so many bytes; None if they fit, as in a bucket."""
  if is_remote(folder):
    return None
  try:
    lacking = needed - shutil.disk_usage(folder).free
  except OSError:  # The save itself will say what is wrong.
    return None
  return f'{folder} lacks {lacking / 2**20:,.1f} MiB' if lacking > 0 else None


def _cannot_write(path: Any, size: int) -> str | None:
  """Why a file of so many bytes cannot be written; None if it can. Nothing is left of it."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
  except Exception as error:  # Of a bucket's client any.
    return f'{path.parent}: {getattr(error, "strerror", None) or first_line(error, 200)}'
  finally:
    with contextlib.suppress(Exception):
      path.unlink()
  return None


def _as_bytes(message: str) -> np.ndarray:
  """A message as an array [300] of bytes, for an exchange between processes."""
  return np.frombuffer(message.encode()[:_MESSAGE].ljust(_MESSAGE, b'\0'), np.uint8)


def _as_text(message: np.ndarray) -> str:
  return message.astype(np.uint8).tobytes().rstrip(b'\0').decode(errors='replace')


@contextlib.contextmanager
def _readable(checkpoint: Any) -> Iterator[None]:
  """Tells of a checkpoint that cannot be read, as one without a manifest may be damaged unnoticed."""
  try:
    yield
  except Exception as error:
    raise UserError(f'The checkpoint {checkpoint} cannot be read ({first_line(error, 200)}): move it out of '
                    f'{checkpoint.parent}, and the one before it is taken.') from error


def _known(saved: Any, now: Any) -> Any:
  """A saved value; in a group, fields that did not exist when it was saved take their current values."""
  return {**now, **saved} if isinstance(saved, dict) and isinstance(now, dict) else saved


def _paths(tree: Any) -> dict[str, tuple[int, ...]]:
  """Shape of each leaf by its path, whatever the tree's containers."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  named = {'.'.join(str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key))))
                    for key in path): leaf for path, leaf in leaves}
  return {path: _stored_shape(leaf) for path, leaf in named.items() if hasattr(leaf, 'shape')}


def _stored_shape(leaf: Any) -> tuple[int, ...]:
  """Shape in which a leaf is stored; for a key, that of its words."""
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jax.eval_shape(jax.random.key_data, leaf).shape
  return tuple(leaf.shape)


def _shape_differences(saved: Any, wanted: Any) -> list[str]:
  """A phrase for each leaf that is missing on one side or differs in shape."""
  saved, wanted = _paths(saved), _paths(wanted)
  phrases = []
  for path in sorted(saved.keys() | wanted.keys()):
    before, now = saved.get(path, 'absent'), wanted.get(path, 'absent')
    if before != now:
      phrases.append(f'{path} was {before}, is {now}')
  return phrases


def restore_model(run: Path) -> dict[str, Any]:
  """Variables {'params', 'batch_stats'} of a run's last checkpoint, as numpy arrays.

  Raises:
    UserError: if the folder is not a run or holds no checkpoint.
  """
  say_unknown(run, read_config(run))
  folder = run / 'checkpoints'
  step, damaged = newest_whole(folder, concerns=of_model)
  for newer, problem in damaged.items():
    print_line(f'The checkpoint {folder / str(newer)} is damaged ({problem}): {folder / str(step)} is read.',
               sys.stderr)
  if step is None:
    raise UserError(f"'{run}' has no finished checkpoint yet: let its pretraining go on until its "
                    'first one, or give another run.')
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  with _readable(folder / str(step)), contextlib.closing(_reader_of_models(folder)) as manager:
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
                          manager.item_metadata(step)['model'])
    model = manager.restore(step, args=ocp.args.Composite(model=ocp.args.StandardRestore(shapes)))
  variables = jax.tree.map(np.asarray, model['model'])
  check_finite(variables, f'The checkpoint {folder / str(step)}',
               'its training diverged; lower config.optimizer.learning_rate and pretrain anew, or move this '
               'checkpoint away to use the one before it.')
  return variables


def restore_encoder(run: Path) -> dict[str, Any]:
  """Variables of the encoder alone, as `restore_model`."""
  return {collection: part['encoder'] for collection, part in restore_model(run).items()}
