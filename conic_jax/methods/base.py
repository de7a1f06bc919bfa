"""The contract between the training loop and a method."""
import abc
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
from jax.sharding import PartitionSpec

from conic_jax.views import Views


@flax.struct.dataclass
class Aux:
  """What a loss gives beside its value.

  Attributes:
    batch_stats: batch norm's running statistics after the batch.
    metrics: scalars to report, by name.
    for_update: what the method's `update` needs of the batch.
  """
  batch_stats: Any
  metrics: dict[str, jax.Array]
  for_update: Any


class Method(abc.ABC):
  """A way to learn without labels: what to see of an image, a loss, and what learns beside SGD.

  A method is made once a run, by its module's `make(config, num_instances, mesh, dtype)`, and holds
  nothing but settings: all that changes is in the train state.

  Attributes:
    views: the groups of views it asks for; a batch holds one array for each group.
  """
  views: tuple[Views, ...]

  @abc.abstractmethod
  def init(self, rng: jax.Array, batch: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Makes (params, batch_stats, method_state) for batches of these shapes."""

  @abc.abstractmethod
  def loss(self, params: Any, batch_stats: Any, method_state: Any, batch: dict[str, Any],
           rng: jax.Array) -> tuple[jax.Array, Aux]:
    """The loss of a batch: a mean over its valid images, differentiated in `params` only.

    Args:
      params, batch_stats, method_state: of the train state.
      batch: 'views' (a tuple over the groups of float32 [B, V, S, S, 3], augmented and normalised),
        'id' int32 [B], 'valid' bool [B], 'crop' float32 [B, V, 4], 'flip' bool [B, V].
      rng: a key of this step.
    """

  def update(self, method_state: Any, aux: Aux, params: Any, step: jax.Array,
             lr: jax.Array) -> Any:
    """The method state after a step: rows by SGD, queue push, bank write, momentum encoder."""
    del aux, params, step, lr
    return method_state

  @abc.abstractmethod
  def encode(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
    """The features that go on after training.

    Args:
      variables: {'params', 'batch_stats'}.
      images: float32 [B, S, S, 3], normalised.

    Returns:
      float32 [B, F].
    """

  def partition_rules(self) -> Sequence[tuple[str, PartitionSpec]]:
    """(pattern of a path in the method state, partition) pairs; what none matches is replicated."""
    return ()

  def before_training(self, state: Any) -> Any:
    """Called once, before the first step of a run that was not resumed."""
    return state

  def before_epoch(self, state: Any, epoch: int) -> Any:
    """Called before the first step of every epoch."""
    del epoch
    return state
