"""Joins a process to its cluster and leaves it, whatever happens to the others."""
import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from conic_jax.errors import Help, Stopped, UserError
from conic_jax.hardware.agreement import AGREEMENT, Agreement
from conic_jax.hardware.meeting import FirstProcess, find_first, open_relay
from conic_jax.hardware.place import Place
from conic_jax.hardware.processes import find_devices
from conic_jax.hardware.quiet import without_gloo_lines
from conic_jax.hardware.watch import Watch

# JAX's own limit on silence is this many times ours, so that the watch speaks first.
_JAX_LATER = 20
# Seconds for what runs at exit before.
_ENDING = 15.0
# Words in the errors of an operation between processes.
_COLLECTIVE = ('gloo', 'nccl', 'collective', 'coordination', 'connection', 'unavailable', 'deadline',
               'barrier', 'peer', 'timed out')


@contextlib.contextmanager
def joined(place: Place, lost_after: float, start_within: float, last_checkpoint: Callable[[], str | None],
           say: Callable[[str], None]) -> Iterator[Watch]:
  """Joins this process to its cluster, for the length of a block.

  If another process is lost, this one says so and ends with exit code `watch.LOST`.

  Args:
    place: this process's place.
    lost_after: seconds after which a silent process is lost.
    start_within: seconds that all processes have to come.
    last_checkpoint: the last good checkpoint, for messages.
    say: shows a line.

  Yields:
    The watch over the other processes.

  Raises:
    UserError: if the cluster does not come together.
  """
  watch = Watch(place, lost_after, last_checkpoint)
  watch.start()
  addresses = _meet(watch, start_within, say)
  try:
    with without_gloo_lines(), _agreeing(watch.agreement):
      _start_jax(place, addresses, lost_after, start_within)
      yield watch
      watch.finish()
  except BaseException as error:
    if not isinstance(error, (UserError, Stopped, Help, KeyboardInterrupt, SystemExit)):
      watch.await_loss(any(word in str(error).lower() for word in _COLLECTIVE))
    code, why = _outcome(error)
    watch.leave(code, why)
    _end_soon(watch, code)
    raise
  try:
    jax.distributed.shutdown()
  except RuntimeError:  # Another process died after all had done their work.
    _end_soon(watch, 0)
  watch.close()


def _meet(watch: Watch, start_within: float, say: Callable[[str], None]) -> tuple[str, str | None]:
  """Waits for the other processes; the addresses of JAX's coordinator for its client and for itself."""
  if watch.place.index:
    watch.call(find_first(watch, start_within, say))
    return watch.call(open_relay(watch)), None
  first = FirstProcess(watch, say)
  watch.call(first.gather(start_within))
  host, port = first.coordinator
  # Left open: closing it would free the port.
  atexit.register(first.held.close)
  return f'{host}:{port}', f'{host}:{port}'


def _start_jax(place: Place, addresses: tuple[str, str | None], lost_after: float, start_within: float
               ) -> None:
  if jax.config.jax_platforms == 'cpu':
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  with contextlib.suppress(AttributeError):  # It takes SIGTERM away until the first step.
    jax.config.update('jax_enable_preemption_service', False)
  if any('_proxy' in name.lower() for name in os.environ):  # For gRPC, which only talks to this machine.
    os.environ.setdefault('no_grpc_proxy', 'localhost,127.0.0.1')
  jax.distributed.initialize(
    addresses[0], place.count, place.index, local_device_ids=place.devices,
    cluster_detection_method='deactivate', coordinator_bind_address=addresses[1],
    initialization_timeout=max(1, round(start_within)),
    heartbeat_timeout_seconds=max(60, round(_JAX_LATER * lost_after)), shutdown_timeout_seconds=60)
  find_devices()
  multihost_utils.process_allgather(np.int32(place.index))


@contextlib.contextmanager
def _agreeing(agreement: Agreement) -> Iterator[None]:
  token = AGREEMENT.set(agreement)
  try:
    yield
  finally:
    AGREEMENT.reset(token)


def _outcome(error: BaseException) -> tuple[int, str]:
  """Exit code of a process that ends with an error, and how the others call it."""
  if isinstance(error, Stopped):
    return error.exit_code, 'was stopped'
  if isinstance(error, KeyboardInterrupt):
    return 130, 'was interrupted'
  return 1, 'ended with an error'


def _end_soon(watch: Watch, code: int) -> None:
  """Ends the process once its main thread has: JAX would wait for the others at exit and then abort."""
  def end() -> None:
    threading.main_thread().join(_ENDING)
    # What the others still do together may need process 0 for a moment.
    watch.linger(_ENDING / 3)
    _exit(code)

  threading.excepthook = lambda _: None  # Threads of a save that failed go on for a while.
  threading.Thread(target=end, name='end', daemon=True).start()


def _exit(code: int) -> None:
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError, AttributeError):
      stream.flush()
  os._exit(code)
