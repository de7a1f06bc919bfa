"""The contract between the training loop and a method."""
import abc
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
from jax.sharding import PartitionSpec

from conic_jax import memory
from conic_jax.companion import Companion, Run
from conic_jax.errors import UserError
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
    passes_before_training: whether training begins with a pass over every image.
    prepares_epochs: whether `before_epoch` does anything.
    chance: the name of the loss that tells images apart, and its value where it tells none; None where a
      loss has no such value.
    notice: what the user should know of how the method took its settings; '' for nothing.
  """
  views: tuple[Views, ...]
  passes_before_training: bool = False
  prepares_epochs: bool = False
  chance: tuple[str, float] | None = None
  notice: str = ''

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

  def exchange(self, method_state: Any, batch: dict[str, Any], step: jax.Array, updates: jax.Array,
               lr: jax.Array) -> tuple[Any, Any]:
    """What the device takes from the host and gives to it, before the loss of a step.

    It happens whether or not an overflow in float16 then skips the step.

    Args:
      method_state: of the train state.
      batch: what the step reads; batch['exchange'] is what the companion prepared.
      step: int32 [], steps done; updates: int32 [], those of them that were applied.
      lr: float32 [], the rate of this step.

    Returns:
      The method state, and a tree of arrays for the companion.
    """
    del batch, step, updates, lr
    return method_state, {}

  def update(self, method_state: Any, aux: Aux, params: Any, step: jax.Array, lr: jax.Array,
             apply: jax.Array) -> Any:
    """The method state after a step: rows by SGD, queue push, bank write, momentum encoder.

    Args:
      method_state: of the train state, after `exchange`.
      aux: what the loss gave.
      params: after the optimizer.
      step: int32 [], steps done before this one.
      lr: float32 [], the rate of this step.
      apply: bool [], False where an overflow in float16 skips the step: then nothing may change. It is
        the method's to see to, as choosing between two whole states would hold both in memory.
    """
    del aux, params, step, lr, apply
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

  @abc.abstractmethod
  def embed(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
    """The features of the projection head, float32 [B, D], as `encode`."""

  def partition_rules(self) -> Sequence[tuple[str, PartitionSpec]]:
    """(pattern of a path in the method state, partition) pairs; what none matches is replicated."""
    return ()

  def before_training(self, state: Any, batch: dict[str, Any]) -> Any:
    """One batch of the pass over every image that comes first, where `passes_before_training`.

    Args:
      state: the train state.
      batch: as for `loss`, with one view of the first group, drawn for this pass alone; images that
        only fill the last batch have the id -1 and are not valid.

    Returns:
      The train state, with the same `step`.
    """
    del batch
    return state

  def after_pass(self, state: Any, initial: Any) -> Any:
    """The state that training begins with; `initial` are the batch_stats from before the pass."""
    del initial
    return state

  def before_epoch(self, state: Any) -> Any:
    """The state before the first step of an epoch, where `prepares_epochs`; jitted, its state given away."""
    return state

  def exchange_inputs(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of batch['exchange'], the first axis of each split over the mesh."""
    del batch_size
    return {}

  def companion(self, run: Run) -> Companion:
    """The host's side of a run; see `companion.py`."""
    del run
    return Companion()


def total_steps(config: Any, num_instances: int) -> int:
  """Steps of the whole run, for what is scheduled over it."""
  return config.epochs * max(1, num_instances // config.batch_size)


def check_positive(value: float, field: str) -> None:
  """Raises a `UserError` where a setting, a temperature say, is not above 0."""
  if not value > 0:
    raise UserError(f'{field} is {value}: it is above 0.')


def check_momentum(settings: Any) -> None:
  """Raises a `UserError` for a `config.momentum` that there is not."""
  if settings.schedule not in memory.SCHEDULES:
    raise UserError(f"config.momentum.schedule is '{settings.schedule}'; there is: "
                    f"{', '.join(memory.SCHEDULES)}.")
  if not 0 <= settings.start <= 1:
    raise UserError(f'config.momentum.start is {settings.start}: it lies from 0 to 1.')
