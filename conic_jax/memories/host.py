"""The contract of the host's side of a memory.

The step is pure. The host's side stands outside it: it prepares what the next step reads, receives what the
step gives back, and keeps it in agreement with the checkpoints.
"""
import abc
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class HostSettings:
  """The run's settings that a host's side needs.

  Attributes:
    folder: where it may keep files; made by it.
    batch_ids: from a step to the ids of its global batch, int64 [batch_size].
    batch_size: images of the global batch.
    last_step: steps that the run will have done at its end.
    save_every: steps between two checkpoints.
    keep: checkpoints that are kept.
  """
  folder: Path
  batch_ids: Callable[[int], np.ndarray]
  batch_size: int
  last_step: int
  save_every: int
  keep: int


class HostSide(abc.ABC):
  """What a host keeps of one memory during a run."""

  @abc.abstractmethod
  def start(self, state: Any, step: int, fresh: bool) -> None:
    """Brings the host to a step, before the first one is taken.

    Args:
      state: the memory's state there.
      step: steps done.
      fresh: whether the run begins; otherwise the state is that of the checkpoint `step`.
    """

  @abc.abstractmethod
  def inputs(self, step: int) -> dict[str, jax.Array]:
    """What the step reads: global arrays as `HostedMemory.host_inputs` describes them."""

  @abc.abstractmethod
  def receive(self, step: int, outputs: Any) -> None:
    """Receives the step's outputs for the host; the arrays may still be pending."""

  @abc.abstractmethod
  def sync(self, step: int, kept: Sequence[int]) -> None:
    """Syncs what is kept with the checkpoint about to be written.

    Args:
      step: steps done in the state that will be saved.
      kept: the steps of the checkpoints that exist: a run may go on from any of them.
    """

  @abc.abstractmethod
  def close(self) -> None:
    """Ends whatever runs in the background."""
