"""The contract between training and a method."""
import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax

from conic_jax.errors import UserError
from conic_jax.memories.memory import Memory
from conic_jax.methods.network import Network
from conic_jax.views import Views


@flax.struct.dataclass
class Aux:
  """What a loss gives beside its value.

  Attributes:
    batch_stats: batch norm's running statistics after the batch.
    metrics: scalars to report, by name.
    seen: what the update of each memory needs of the batch, by the memory's name; a memory that is not named
      keeps its state.
  """
  batch_stats: Any
  metrics: dict[str, jax.Array]
  seen: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class InitialPass:
  """A pass over every image before training.

  Attributes:
    step: from the train state and a batch to the train state, with the same `step`. The batch is as for
      `Method.loss`, with one view of the first group, drawn for this pass alone; images that only fill the
      last batch have the id -1 and are not valid.
    finish: from the state after the pass and the batch_stats before it to the state that training begins
      with.
  """
  step: Callable[[Any, dict[str, Any]], Any]
  finish: Callable[[Any, Any], Any]


class Method(abc.ABC):
  """A way to learn without labels: what to see of an image, a loss, and what learns outside the optimizer.

  A method is made once a run, by its module's `make(config, num_instances, mesh, dtype)`, and holds
  nothing but settings: all that changes is in the train state.

  Attributes:
    views: the groups of views it asks for; a batch holds one array for each group.
    network: encoder and head: what is evaluated, and goes on after training.
    memories: what learns outside the optimizer, by name.
    initial_pass: the pass over every image that comes first; None without.
    chance: the name of the loss that tells images apart, and its value where it tells none; None where a
      loss has no such value.
    notice: what the user should know of how the method took its settings; '' for nothing.
  """
  views: tuple[Views, ...]
  network: Network
  memories: Mapping[str, Memory] = {}
  initial_pass: InitialPass | None = None
  chance: tuple[str, float] | None = None
  notice: str = ''

  @abc.abstractmethod
  def init(self, rng: jax.Array, batch: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Makes (params, batch_stats, state of each memory by name) for batches of these shapes."""

  @abc.abstractmethod
  def loss(self, params: Any, batch_stats: Any, memories: dict[str, Any], batch: dict[str, Any],
           rng: jax.Array) -> tuple[jax.Array, Aux]:
    """The loss of a batch: a mean over its valid images, differentiated in `params` only.

    Args:
      params, batch_stats: of the train state.
      memories: the state of each memory, by name.
      batch: 'views' (a tuple over the groups of float32 [B, V, S, S, 3], augmented and normalised),
        'id' int32 [B], 'valid' bool [B], 'crop' float32 [B, V, 4], 'flip' bool [B, V]; 'host_inputs', by the
        name of each memory that has a host's side, what the host gave it.
      rng: a key of this step.
    """


def total_steps(config: Any, num_instances: int) -> int:
  """Steps of the whole run, for what is scheduled over it."""
  return config.epochs * max(1, num_instances // config.batch_size)


def check_positive(value: float, field: str) -> None:
  """Raises a `UserError` where a setting, a temperature say, is not positive."""
  if not value > 0:
    raise UserError(f'{field} is {value}; it must be positive.')
