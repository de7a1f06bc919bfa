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
  """What a loss returns besides its value.

  Attributes:
    batch_stats: batch norm's running statistics after the batch.
    metrics: scalars to report, by name.
    seen: inputs to the memories' updates, by memory name; a memory that is not named keeps its state.
  """
  batch_stats: Any
  metrics: dict[str, jax.Array]
  seen: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class InitialPass:
  """A pass over every image before training.

  Attributes:
    step: maps the train state and a batch to the train state, with the same `step`. The batch is as for
      `Method.loss`, with one view of the first group, drawn for this pass alone; padding in the last batch
      has the id −1 and is not valid.
    finish: maps the state after the pass and the batch_stats before it to the state that training starts
      with.
  """
  step: Callable[[Any, dict[str, Any]], Any]
  finish: Callable[[Any, Any], Any]


def softmax_kernel(config: Any) -> str:
  """`Softmax.kernel` for `config.kernels`: '' for what suits the device, 'xla' without kernels."""
  return '' if config.get('kernels', True) else 'xla'


class Method(abc.ABC):
  """A way to learn without labels: the views of an image, a loss, and the memories.

  A method is created once per run, by its module's `make(config, num_instances, mesh, dtype)`, and holds
  settings only: everything that changes is in the train state.

  Attributes:
    views: the groups of views that it needs; a batch holds one array for each group.
    network: encoder and head, which are evaluated and kept after training.
    memories: the state that learns outside the optimizer, by name.
    initial_pass: the pass over every image before training; None for none.
    chance: the name of the loss that discriminates images, and its value at chance; None if no loss has such
      a value.
    notice: what to tell the user about how the method interpreted its settings; '' for nothing.
    undivided: why a batch cannot be taken in parts (`config.accumulate`), to follow 'in parts: '; '' if it
      can, which only a `DecomposedMethod` may say.
  """
  views: tuple[Views, ...]
  network: Network
  memories: Mapping[str, Memory] = {}
  initial_pass: InitialPass | None = None
  chance: tuple[str, float] | None = None
  notice: str = ''
  undivided: str = 'it has no loss of embedded images, as a DecomposedMethod has'

  @abc.abstractmethod
  def init(self, rng: jax.Array, batch: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Creates (params, batch_stats, state of each memory by name) for batches of these shapes."""

  @abc.abstractmethod
  def loss(self, params: Any, batch_stats: Any, memories: dict[str, Any], batch: dict[str, Any],
           rng: jax.Array) -> tuple[jax.Array, Aux]:
    """Loss of a batch: a mean over its valid images, differentiated in `params` only.

    Args:
      params, batch_stats: of the train state.
      memories: the state of each memory, by name.
      batch: 'views' (a tuple over the groups of float32 [B, V, S, S, 3], augmented and normalised),
        'id' int32 [B], 'valid' bool [B], 'crop' float32 [B, V, 4], 'flip' bool [B, V]; 'host_inputs', the
        host inputs of each memory that has a host side, by name.
      rng: this step's key.
    """


class DecomposedMethod(Method):
  """A method whose loss is a mean over images, each of which needs no other image of its batch.

  The loss has two halves, so that a step can take a batch in parts: `embed` may see a part of the batch,
  `loss_of` sees what was embedded of all of it.
  """
  undivided = ''

  @abc.abstractmethod
  def embed(self, params: Any, batch_stats: Any, memories: dict[str, Any], batch: dict[str, Any],
            rng: jax.Array) -> tuple[Any, Any]:
    """Runs the networks on the images of a batch or of a part of it.

    Args:
      params, batch_stats, memories, rng: as for `loss`.
      batch: as for `loss`, without 'host_inputs'.

    Returns:
      What the loss needs of the images, a tree of float32 [B, ...], and the tree of all batch-norm statistics
      after the batch.
    """

  @abc.abstractmethod
  def loss_of(self, params: Any, embedded: Any, statistics: Any, memories: dict[str, Any],
              batch: dict[str, Any], rng: jax.Array) -> tuple[jax.Array, Aux]:
    """Loss of a whole batch, as `loss`.

    Args:
      params, memories, rng: as for `loss`.
      embedded, statistics: what `embed` returned.
      batch: as for `loss`; 'views' may be absent.
    """

  def loss(self, params, batch_stats, memories, batch, rng):
    embedded, statistics = self.embed(params, batch_stats, memories, batch, rng)
    return self.loss_of(params, embedded, statistics, memories, batch, rng)


def total_steps(config: Any, num_instances: int) -> int:
  """Steps of the whole run, for schedules."""
  return config.epochs * max(1, num_instances // config.batch_size)


def check_positive(value: float, field: str) -> None:
  """Raises a `UserError` if a setting, such as a temperature, is not positive."""
  if not value > 0:
    raise UserError(f'{field} is {value}; it must be positive.')
