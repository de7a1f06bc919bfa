"""The resources that a run holds open."""
import contextlib
import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
from jax.sharding import Mesh

from conic_jax.hardware.processes import run_everywhere
from conic_jax.memories.host import HostSettings, HostSide
from conic_jax.memories.memory import Memory, hosted
from conic_jax.run.checkpoints import Checkpoints
from conic_jax.run.claim import claim_folder
from conic_jax.run.signals import StopRequest
from conic_jax.terminal import print_line


class Closable(Protocol):
  """Anything that can be closed."""

  def close(self) -> None:
    """Closes it."""


Kept = TypeVar('Kept', bound=Closable)


class Session:
  """Signals, checkpoints, reports and other resources of a run, closed in reverse order on every exit.

  Attributes:
    folder: the run's folder.
    mesh: the mesh.
    log: shows a line; only the first process shows any.
    signals: Ctrl-C, SIGTERM and SIGHUP.
    first_process: whether this process writes what only one may write.
  """

  def __init__(self, folder: Path, mesh: Mesh, log: Callable[[str], None] | None = None):
    self.folder, self.mesh = folder, mesh
    self.first_process = jax.process_index() == 0
    self.log = log or (print_line if self.first_process else _drop)
    self.signals = StopRequest()
    self._at_the_end = contextlib.ExitStack()

  def __enter__(self) -> 'Session':
    self._at_the_end.enter_context(self.signals)
    return self

  def __exit__(self, *raised: Any) -> None:
    self._at_the_end.__exit__(*raised)

  def keep_open(self, opened: Kept) -> Kept:
    """The same resource, to be closed at the end."""
    self._at_the_end.callback(opened.close)
    return opened

  def claim_folder(self, field: str) -> None:
    """Creates the run's folder and keeps other commands out of it until the end.

    Args:
      field: the setting that names the folder, for messages.

    Raises:
      UserError: see `claim.claim_folder`.
    """
    def claim() -> None:
      if self.first_process:
        self.keep_open(claim_folder(self.folder, field, self.log))
    run_everywhere(claim)

  def remove(self, name: str) -> None:
    """Removes a subfolder of the run's folder, if it exists."""
    if self.first_process:
      shutil.rmtree(self.folder / name, ignore_errors=True)
      for manifest in (self.folder / 'checksums').glob(f'{name}-*.json'):
        manifest.unlink(missing_ok=True)

  def open_hosts(self, memories: Mapping[str, Memory], states: Mapping[str, Any], settings: HostSettings,
                 step: int, fresh: bool) -> dict[str, HostSide]:
    """Starts the host sides of the memories that have one, as `HostSide.start`, by the memories' names."""
    hosts = {name: self.keep_open(memory.host(settings)) for name, memory in hosted(memories).items()}
    for name, host in hosts.items():
      run_everywhere(functools.partial(host.start, states[name], step, fresh))
    return hosts

  def checkpoints(self, name: str, keep: int, verify: bool = True) -> Checkpoints:
    """Opens the checkpoints in a subfolder of the run's folder; see `Checkpoints`."""
    return self.keep_open(Checkpoints(self.folder / name, keep, self.log, verify))


def _drop(line: str) -> None:
  del line
