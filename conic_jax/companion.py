"""The host's side of a method whose state does not all lie in the train state.

The step is pure. A companion stands outside it: it prepares what the next step takes from the host,
and keeps what the step gives back, in agreement with the checkpoints.
"""
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Run:
  """What a companion must know of the run it serves.

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


class Companion:
  """The contract; this one does nothing, as most methods need."""

  def start(self, state: Any, step: int, fresh: bool) -> None:
    """Brings what the host keeps to a step, before the first one is taken.

    Args:
      state: the train state there.
      step: steps done.
      fresh: whether the run begins; otherwise the state is that of the checkpoint `step`.
    """

  def prepare(self, step: int) -> dict[str, Any]:
    """What the step reads as batch['exchange']: global arrays, their first axis split over the mesh."""
    del step
    return {}

  def commit(self, step: int, outgoing: Any) -> None:
    """Takes what the step gave to the host, device arrays that may not be ready yet."""

  def checkpoint(self, step: int, kept: Sequence[int]) -> None:
    """Makes what is kept fit the checkpoint that is about to be saved.

    Args:
      step: steps done in the state that will be saved.
      kept: the steps of the checkpoints that exist: a run may go on from any of them.
    """

  def close(self) -> None:
    """Ends whatever runs in the background."""
