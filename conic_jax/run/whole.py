"""Which checkpoints are whole: their manifests, and what is done with damaged ones."""
import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from conic_jax.buckets.bucket import COMMITTED, is_remote, move, size
from conic_jax.errors import UserError
from conic_jax.run import manifest
from conic_jax.run.manifest import Concerns, everything

# Every checkpoint's items.
_ITEMS = ('model', 'training')
_POLL_SECONDS, _POLL_BUCKET_SECONDS = 0.1, 2.0


def of_model(name: str) -> bool:
  """Concerns the files that an evaluation reads."""
  return not name.startswith('training/')


def manifest_path(folder: Any, step: int) -> Any:
  """The manifest of a step's checkpoint; it lies beside the folder, which is Orbax's."""
  return folder.parent / 'checksums' / f'{folder.name}-{step}.json'


def steps_in(folder: Any) -> list[int]:
  """The steps of the checkpoints in a folder of this machine or a bucket, damaged or not, ascending."""
  return sorted(int(path.name) for path in folder.glob('*') if path.name.isdecimal() and complete(path))


def complete(checkpoint: Any) -> bool:
  """Whether all of a checkpoint was written: a folder gets its name then, in a bucket its last file."""
  return (checkpoint / COMMITTED).exists() if is_remote(checkpoint) else checkpoint.is_dir()


def newest_whole(folder: Any, verify: bool = True, concerns: Concerns = everything
                 ) -> tuple[int | None, dict[int, str]]:
  """The newest checkpoint that is whole, and what is wrong with each newer one.

  Args:
    folder: the folder of checkpoints, of this machine or in a bucket.
    verify: whether to compare the files' contents with their hashes.
    concerns: which files to look at.

  Returns:
    Its step, None if there is no checkpoint; a phrase for each damaged step.

  Raises:
    UserError: if there are checkpoints and none is whole.
  """
  damaged: dict[int, str] = {}
  for step in reversed(steps_in(folder)):
    if not (problem := damage(folder, step, verify, concerns)):
      return step, damaged
    damaged[step] = problem
  if damaged:
    told = '; '.join(f'{step}: {problem}' for step, problem in list(damaged.items())[:3])
    raise UserError(f'No checkpoint in {folder} is whole ({told}): bring one back from a copy, or begin anew '
                    'in another folder.')
  return None, damaged


def damage(folder: Any, step: int, verify: bool = True, concerns: Concerns = everything) -> str | None:
  """What is wrong with a step's checkpoint, which must have all its parts; None if nothing is."""
  checkpoint, path = folder / str(step), manifest_path(folder, step)
  try:
    needed = ['identity/metadata']
    for item in filter(lambda item: concerns(f'{item}/'), _ITEMS):
      needed += [f'{item}/_METADATA', f'{item}/manifest.ocdbt']
    for name in needed:
      if not (checkpoint / name).exists():
        return f'{name} is missing'
      if name.endswith('.ocdbt'):
        if not size(checkpoint / name):
          return f'{name} is empty'
      else:
        json.loads((checkpoint / name).read_text())
  except (OSError, ValueError) as error:
    return f'it cannot be read ({error})'
  if verify and path.exists():
    return manifest.damage(checkpoint, path, concerns)
  return None


def set_aside(folder: Any, steps: Mapping[int, str], newest: int, say: Callable[[str], None]) -> None:
  """Moves damaged checkpoints out of the way of new ones, and says so."""
  for step, problem in steps.items():
    aside = folder.parent / 'damaged' / f'{folder.name}-{step}'
    number = 1
    while aside.exists():
      number += 1
      aside = aside.with_name(f'{folder.name}-{step}-{number}')
    move(folder / str(step), aside)
    with contextlib.suppress(OSError):
      manifest_path(folder, step).unlink()
    say(f'The checkpoint {folder / str(step)} is damaged ({problem}): it is kept in {aside}, and the run '
        f'goes on from {folder / str(newest)}.')


class ManifestWriter:
  """Writes the manifests of checkpoints in the background, each once its checkpoint is complete."""

  def __init__(self, folder: Any):
    self._folder = folder
    self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix='manifests')
    self._ended = threading.Event()

  def expect(self, step: int) -> None:
    """Writes the manifest of a step when its checkpoint appears, or nothing if `ended` comes first."""
    self._ended = threading.Event()
    self._worker.submit(self._write, step, self._ended)

  def ended(self) -> None:
    """The save that was expected is complete, or has failed."""
    self._ended.set()

  def close(self) -> None:
    """Waits for the last manifest, and removes those of checkpoints that are gone."""
    self._ended.set()
    self._worker.shutdown(wait=True)
    self._forget()

  def _write(self, step: int, ended: threading.Event) -> None:
    checkpoint = self._folder / str(step)
    pause = _POLL_BUCKET_SECONDS if is_remote(checkpoint) else _POLL_SECONDS
    with contextlib.suppress(Exception):  # A checkpoint without a manifest is read, too.
      while not complete(checkpoint) and not ended.wait(pause):
        pass
      if complete(checkpoint):
        manifest.write(checkpoint, manifest_path(self._folder, step))
    self._forget()

  def _forget(self) -> None:
    """Removes the manifests of checkpoints that are gone: Orbax deletes one after its successor appeared."""
    with contextlib.suppress(Exception):
      for path in manifest_path(self._folder, 0).parent.glob(f'{self._folder.name}-*.json'):
        if not (self._folder / path.stem.rpartition('-')[2]).exists():
          path.unlink()
