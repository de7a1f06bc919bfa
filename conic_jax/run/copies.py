"""Copies of runs and files in a bucket, for commands that read them."""
import fcntl
import shutil
from pathlib import Path
from typing import Any

from conic_jax.buckets import bucket
from conic_jax.buckets.bucket import in_words, is_url, open_path
from conic_jax.buckets.lease import NAME as LEASE
from conic_jax.buckets.run_folder import working_copy
from conic_jax.errors import UserError
from conic_jax.run.json_file import read_json, write_json
from conic_jax.run.whole import newest_whole, of_model

# Folders of a run that are read besides its files and its newest checkpoint.
_FOLDERS = ('figures',)
# Says which checkpoint of a copy is complete.
_DONE, _LOCK = '.copied.json', '.copying'


def fetched(name: str | Path, field: str = 'the name') -> Path:
  """A path of this machine for a run, or a file, that may be in a bucket.

  Of a run in a bucket it is a copy of its small files and of the model in its newest checkpoint that is
  whole, in the user's cache folder. What is there already is not read again.

  Args:
    name: a path or a URL.
    field: the setting or flag that names it, for messages.

  Raises:
    UserError: if the bucket cannot be read, or there is nothing of that name.
  """
  if not is_url(name):
    return Path(name)
  remote = open_path(str(name), field)
  copy = working_copy(f'{remote}/read')
  copy = copy.with_name(f'{copy.name}-{remote.name}')
  with in_words(remote, field):
    if not remote.exists():
      raise UserError(f"There is nothing named '{remote}': give the folder of a run, or a file.")
    if not remote.is_dir():
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy = copy.with_suffix(Path(remote.name).suffix)
      copy.write_bytes(remote.read_bytes())
      return copy
    _copy_run(remote, copy)
  return copy


def _copy_run(remote: Any, copy: Path) -> None:
  """Copies what evaluations, exports and pages read of a run."""
  copy.mkdir(parents=True, exist_ok=True)
  with (copy / _LOCK).open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # Another command may copy the same run.
    _copy_changed(remote, copy)


def _copy_changed(remote: Any, copy: Path) -> None:
  top = list(remote.iterdir())
  there = {path.name for path in top}
  for old in copy.iterdir():
    if old.is_file() and old.name not in there | {_DONE, _LOCK}:
      old.unlink()
  for path in top:
    if not path.is_dir() and path.name != LEASE:
      (copy / path.name).write_bytes(path.read_bytes())
    elif path.name in _FOLDERS:
      shutil.rmtree(copy / path.name, ignore_errors=True)
      bucket.copy(path, copy / path.name)
  step, damaged = newest_whole(remote / 'checkpoints', concerns=of_model)
  checkpoints = copy / 'checkpoints'
  identity = {'step': step, 'damaged': sorted(damaged), 'version': _version(remote / 'checkpoints', step)}
  if read_json(copy / _DONE) == identity and checkpoints.is_dir():
    return
  (copy / _DONE).unlink(missing_ok=True)
  shutil.rmtree(checkpoints, ignore_errors=True)
  checkpoints.mkdir()
  if step is not None:
    for path in (remote / 'checkpoints' / str(step)).iterdir():
      if path.name != 'training':
        bucket.copy(path, checkpoints / str(step) / path.name)
  write_json(copy / _DONE, identity)


def _version(checkpoints: Any, step: int | None) -> str | None:
  """What tells a checkpoint from another of the same step."""
  return None if step is None else (checkpoints / str(step) / '_CHECKPOINT_METADATA').read_text()
