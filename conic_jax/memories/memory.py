"""The contract of a memory: state that learns outside the optimizer."""
import abc
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from conic_jax.memories.host import HostSettings, HostSide


class Memory:
  """State that each step updates by a rule of its own: rows, a queue, a bank, a momentum encoder.

  The object holds settings only; its state is in the train state, under the name that the method gives it.

  Attributes:
    prepares_epochs: whether `before_epoch` does anything.
  """
  prepares_epochs: bool = False

  def update(self, state: Any, seen: Any, params: Any, step: jax.Array, lr: jax.Array, applied: jax.Array
             ) -> Any:
    """The state after a step.

    Args:
      state: the state before the step.
      seen: the loss's input to this memory, `Aux.seen[name]`.
      params: the network's parameters, after the optimizer's update.
      step: int32 [], steps done before this one.
      lr: float32 [], the encoder's learning rate in this step.
      applied: bool [], False if a float16 overflow skips the step: the state must then stay unchanged. The
        memory ensures this itself, since selecting between two whole states would hold both.
    """
    raise NotImplementedError(f'{type(self).__name__} has no update: the loss must give it nothing.')

  def partition_rules(self) -> Sequence[tuple[str, PartitionSpec]]:
    """(path pattern, partition) pairs for the state's leaves; a leaf that matches none is replicated."""
    return ()

  def before_epoch(self, memories: Mapping[str, Any], name: str) -> Any:
    """The state before the first step of an epoch, given the states of all memories by name."""
    return memories[name]


class HostedMemory(Memory, abc.ABC):
  """A memory kept partly on the hosts, outside the pure step."""

  @abc.abstractmethod
  def host_inputs(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the host's inputs to each step; the first axis of each is split over the mesh."""

  @abc.abstractmethod
  def exchange(self, state: Any, inputs: dict[str, jax.Array], step: jax.Array, updates: jax.Array,
               lr: jax.Array) -> tuple[Any, Any]:
    """Takes the host's inputs and makes its outputs before a step's loss, even if the step is skipped.

    Args:
      state: the state before the step.
      inputs: arrays as `host_inputs` describes them.
      step: int32 [], steps done; updates: int32 [], how many of them were applied.
      lr: float32 [], the encoder's learning rate in this step.

    Returns:
      The state, and a tree of output arrays for the host.
    """

  @abc.abstractmethod
  def host(self, settings: HostSettings) -> HostSide:
    """The host side for a run."""


def hosted(memories: Mapping[str, Memory]) -> dict[str, HostedMemory]:
  """The memories that have a host side."""
  return {name: memory for name, memory in memories.items() if isinstance(memory, HostedMemory)}


def update_all(memories: Mapping[str, Memory], states: Mapping[str, Any], seen: Mapping[str, Any],
               params: Any, step: jax.Array, lr: jax.Array, applied: jax.Array) -> dict[str, Any]:
  """States of all memories after a step, as `Memory.update`; a memory not in `seen` keeps its state."""
  updated = {name: memories[name].update(states[name], part, params, step, lr, applied)
             for name, part in seen.items()}
  return {**states, **updated}
