"""The contract of a memory: state that learns outside the optimizer."""
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from conic_jax.memories.host import HostSettings, HostSide


class Memory:
  """State that a step changes by a rule of its own: rows, a queue, a bank, a momentum encoder.

  A memory holds settings only. Its state is in the train state, under the name that the method gives it.

  Attributes:
    prepares_epochs: whether `before_epoch` does anything.
  """
  prepares_epochs: bool = False

  def update(self, state: Any, seen: Any, params: Any, step: jax.Array, lr: jax.Array, applied: jax.Array
             ) -> Any:
    """The state after a step.

    Args:
      state: before the step.
      seen: what the loss gives for this memory, `Aux.seen[name]`.
      params: the network's, after the optimizer.
      step: int32 [], steps done before this one.
      lr: float32 [], the encoder's learning rate in this step.
      applied: bool [], False where a float16 overflow skips the step: the state must stay as it is. The
        memory sees to it, as selecting between two whole states would hold both.
    """
    raise NotImplementedError(f'{type(self).__name__} has no update: the loss must give it nothing.')

  def partition_rules(self) -> Sequence[tuple[str, PartitionSpec]]:
    """(pattern of a path within the state, partition) pairs; what matches none is replicated."""
    return ()

  def before_epoch(self, memories: Mapping[str, Any], name: str) -> Any:
    """The state before the first step of an epoch, given the states of all memories by name."""
    return memories[name]


class HostedMemory(Memory):
  """A memory part of which is kept on the hosts, outside the pure step."""

  def host_inputs(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of what the host gives each step; the first axis of each is split over the mesh."""
    raise NotImplementedError

  def exchange(self, state: Any, inputs: dict[str, jax.Array], step: jax.Array, updates: jax.Array,
               lr: jax.Array) -> tuple[Any, Any]:
    """Takes from the host and gives to it, before the loss of a step and whether or not the step is applied.

    Args:
      state: before the step.
      inputs: arrays as `host_inputs` describes them.
      step: int32 [], steps done; updates: int32 [], those of them that were applied.
      lr: float32 [], the encoder's learning rate in this step.

    Returns:
      The state, and a tree of arrays for the host.
    """
    raise NotImplementedError

  def host(self, settings: HostSettings) -> HostSide:
    """The host's side of a run."""
    raise NotImplementedError


def hosted(memories: Mapping[str, Memory]) -> dict[str, HostedMemory]:
  """Those of the memories that have a host's side."""
  return {name: memory for name, memory in memories.items() if isinstance(memory, HostedMemory)}


def update_all(memories: Mapping[str, Memory], states: Mapping[str, Any], seen: Mapping[str, Any],
               params: Any, step: jax.Array, lr: jax.Array, applied: jax.Array) -> dict[str, Any]:
  """The states of all memories after a step, as `Memory.update`; one that saw nothing keeps its state."""
  updated = {name: memories[name].update(states[name], part, params, step, lr, applied)
             for name, part in seen.items()}
  return {**states, **updated}
