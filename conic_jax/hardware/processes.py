"""The devices of all processes, and what the processes must do together."""
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from conic_jax.errors import UserError


def run_everywhere(action: Callable[[], None]) -> None:
  """Runs a host action on every process; if it fails on one, all of them stop.

  Raises:
    UserError: on the other processes; the failing one raises the action's own error.
  """
  failure: Exception | None = None
  try:
    action()
  except Exception as error:
    failure = error
  if jax.process_count() > 1:
    failed = multihost_utils.process_allgather(np.bool_(failure is not None))
    if failure is None and failed.any():
      raise UserError(f'Process {int(np.flatnonzero(failed)[0])} could not go on: its own message says why.')
  if failure is not None:
    raise failure


def find_devices() -> list[Any]:
  """The devices of all processes.

  Raises:
    UserError: if there are none, as with a wrong JAX_PLATFORMS.
  """
  try:
    return jax.devices()
  except (RuntimeError, AssertionError) as error:
    if not (platforms := jax.config.jax_platforms):
      raise
    raise UserError(f"JAX finds no device for JAX_PLATFORMS='{platforms}': unset it to use what is here, or "
                    'install the JAX that it needs, such as jax[cuda12] or jax[tpu].') from error
