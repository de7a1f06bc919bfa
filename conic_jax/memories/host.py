"""The contract of a memory's host side.

The step is pure; the host side works outside it: it prepares the inputs of the next step, receives the
outputs of each step, and keeps its store in agreement with the checkpoints.
"""
import abc
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from conic_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class HostSettings:
  """The run's settings that a host side needs.

  Attributes:
    folder: where it may store files; it creates the folder.
    batch_ids: maps a step to the ids of its global batch, int64 [batch_size].
    batch_size: images in the global batch.
    last_step: steps done at the end of the run.
    save_every: steps between two checkpoints.
    keep: number of checkpoints kept.
    remote: the run's bucket, where all processes copy what belongs to each checkpoint; `folder` is then this
      process's own. None if all processes share `folder`.
  """
  folder: Path
  batch_ids: Callable[[int], np.ndarray]
  batch_size: int
  last_step: int
  save_every: int
  keep: int
  remote: epath.Path | None = None


class NotCopied(UserError):
  """The bucket lacks what belongs to a checkpoint, which must be left out; training may go on."""


class HostSide(abc.ABC):
  """The part of one memory that a host keeps during a run."""

  @abc.abstractmethod
  def start(self, state: Any, step: int, fresh: bool) -> None:
    """Brings the host side to a step, before the first one is taken.

    Args:
      state: the memory's state at that step.
      step: steps done.
      fresh: whether the run is new; otherwise the state is that of checkpoint `step`.
    """

  @abc.abstractmethod
  def inputs(self, step: int) -> dict[str, jax.Array]:
    """Host inputs of the step: global arrays as `HostedMemory.host_inputs` describes them."""

  @abc.abstractmethod
  def receive(self, step: int, outputs: Any) -> None:
    """Receives the step's outputs for the host; the arrays may still be pending."""

  @abc.abstractmethod
  def sync(self, step: int, kept: Sequence[int]) -> None:
    """Syncs the store with the checkpoint about to be written.

    Args:
      step: steps done in the state that will be saved.
      kept: the steps of the existing checkpoints: a run may resume from any of them.

    Raises:
      NotCopied: on every process, if the bucket lacks the part of any.
    """

  @abc.abstractmethod
  def close(self) -> None:
    """Stops all background work."""
