"""The resources that a run holds open."""
import contextlib
import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
from jax.sharding import Mesh

from conic_jax.buckets.bucket import in_words
from conic_jax.buckets.lease import Lease
from conic_jax.buckets.mirror import Mirror
from conic_jax.buckets.run_folder import RunFolder
from conic_jax.hardware.processes import run_everywhere
from conic_jax.memories.host import HostSettings, HostSide
from conic_jax.memories.memory import Memory, hosted
from conic_jax.run.checkpoints import Checkpoints
from conic_jax.run.claim import check_is_run, claim_folder, mark
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
    place: the run's folder.
    folder: its folder of this machine, where all but checkpoints is read and written.
    mesh: the mesh.
    log: shows a line; only the first process shows any.
    signals: Ctrl-C, SIGTERM and SIGHUP.
    first_process: whether this process writes what only one may write.
  """

  def __init__(self, place: RunFolder | Path, mesh: Mesh, log: Callable[[str], None] | None = None):
    self.place = place if isinstance(place, RunFolder) else RunFolder(place)
    self.folder, self.mesh = self.place.local, mesh
    self.first_process = jax.process_index() == 0
    self.log = log or (print_line if self.first_process else _drop)
    self.signals = StopRequest()
    self._at_the_end = contextlib.ExitStack()
    self._mirror: Mirror | None = None
    self._lease: Lease | None = None

  def __enter__(self) -> 'Session':
    self._at_the_end.enter_context(self.signals)
    return self

  def __exit__(self, *raised: Any) -> None:
    self._at_the_end.__exit__(*raised)

  def keep_open(self, opened: Kept) -> Kept:
    """The same resource, to be closed at the end."""
    self._at_the_end.callback(opened.close)
    return opened

  @property
  def remedy(self) -> str:
    """What to do where something could not be written."""
    return 'Free room on the disk' if self.place.remote is None else 'Look at the network and the bucket'

  def claim_folder(self, field: str) -> None:
    """Creates the run's folder and keeps other commands out of it until the end.

    With a run in a bucket, every process gets a working copy of its small files; the first keeps the bucket's
    up to date.

    Args:
      field: the setting that names the folder, for messages.

    Raises:
      UserError: see `claim.claim_folder`.
    """
    def claim() -> None:
      if self.first_process:
        self.keep_open(claim_folder(self.folder, field, self.log))
        if (remote := self.place.remote) is not None:
          with in_words(remote, field):
            check_is_run(remote, field)
          self._lease = self.keep_open(Lease(remote, field, self.log))
      self._mirror_bucket(field)
    run_everywhere(claim)

  def send(self) -> None:
    """Starts to send changed files to the bucket of the run, if it has one."""
    if self._mirror:
      self._mirror.send()

  def unsent(self) -> str | None:
    """Sends changed files to the bucket of the run; returns why some are not there."""
    if self._lease and self._lease.lost:
      return self._lease.lost
    return self._mirror.sent() if self._mirror else None

  def remove(self, name: str) -> None:
    """Removes a subfolder of the run's folder, if it exists."""
    if self.first_process:
      if (remote := self.place.remote) is None:
        shutil.rmtree(self.folder / name, ignore_errors=True)
      elif (remote / name).exists():
        (remote / name).rmtree()
      for manifest in (self.place.large / 'checksums').glob(f'{name}-*.json'):
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
    return self.keep_open(Checkpoints(self.place.large / name, keep, self.log, verify, self.unsent))

  def _mirror_bucket(self, field: str) -> None:
    """Makes the working copy of a folder in a bucket, and keeps the bucket up to date until the end."""
    if self.place.remote is not None:
      mirror = Mirror(self.place, field, self.first_process, self.log)
      mirror.fetch()
      if self.first_process:
        mark(self.folder)
        self._mirror = self.keep_open(mirror)


def _drop(line: str) -> None:
  del line
