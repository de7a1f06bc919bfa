"""One-Million: instance classification over all images with a contrastive prior and smoothed labels.

J = −mean log(Σⱼ yⱼ e^{cos(wⱼ, x)/τ} / Σⱼ e^{cos(wⱼ, x)/τ}), where y is 1 − α at the own class and α/K at the
K classes whose rows are nearest to the own row.

Source: "Train a One-Million-Way Instance Classifier for Unsupervised Visual Representation Learning".
"""
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax import losses
from conic_jax.errors import UserError
from conic_jax.hardware import local_rows
from conic_jax.losses import hardest, partitioned
from conic_jax.memories import instance_rows
from conic_jax.memories.hardest_table import HardestTable
from conic_jax.memories.instance_rows import Classified
from conic_jax.methods.instance import InstanceMethod, mean_weights
from conic_jax.methods.method import InitialPass, softmax_kernel
from conic_jax.methods.network import merge_views
from conic_jax.run.state import TrainState

PRIORS = ('none', 'running', 'frozen')
TABLES = ('auto', 'epoch', 'batch')
SEARCHES = ('exact', 'approximate')
# Up to this many images 'auto' tabulates the hardest classes of all: N × K ids, and N² cosines an epoch.
_MOST_FOR_A_TABLE = 10 ** 8


class OneMillion(InstanceMethod):
  """The method; see the module.

  The contrastive prior is one pass over the data with the random network before training, whose features
  become the rows. Each image is seen as one training view, drawn for this pass alone, in shuffled order;
  batch norm is *running* (it normalises by the statistics from before the batch and then updates them) or
  frozen. The features are written without normalisation unless `config.prior.normalise`. Training keeps the
  statistics if `config.prior.keep_statistics`, and otherwise starts from the initial ones; in training they
  affect only what is evaluated.
  """

  def __init__(self, config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype,
               softmax: partitioned.Softmax):
    super().__init__(config, num_instances, mesh, dtype, alpha=0.0, softmax=softmax)
    self.prior, self.num_hardest = config.prior, config.smoothing.k
    if self.prior.batch_norm != 'none':
      self.initial_pass = InitialPass(self.write_rows, self.after_pass)
    if softmax.smoothing and _has_table(config, num_instances):
      seed = config.seed if config.smoothing.search == 'approximate' else None
      self.memories = {**self.memories, 'hardest': HardestTable(num_instances, self.num_hardest, mesh, seed)}

  def classify(self, params, memories, features, batch, rng):
    count = len(features) // len(batch['id'])
    ids = jnp.repeat(batch['id'], count)
    weights = memories['rows'].weights
    key = rng if self.softmax.num_drawn else None
    nearest = None
    if 'hardest' in memories:
      nearest = local_rows.read(memories['hardest'], batch['id'], self.mesh)
    elif self.softmax.smoothing:
      nearest = hardest.for_batch(weights, batch['id'], num_instances=self.num_instances,
                                  k=self.num_hardest, mesh=self.mesh)
    scores = partitioned.scores(weights, features, ids, self.softmax, nearest, key)
    return Classified(features, ids, mean_weights(batch['valid'], count), scores, nearest, key)

  def write_rows(self, state: TrainState, batch: dict[str, Any]) -> TrainState:
    """The state with a batch's features as the rows of its images."""
    features, batch_stats = self.network.project(
      state.params, state.batch_stats, merge_views(batch['views'][0]), batch['valid'], self.prior.batch_norm)
    if self.prior.normalise:
      features = losses.normalise(features)
    rows = instance_rows.write(state.memories['rows'], batch['id'], features, batch['valid'], self.mesh)
    return state.replace(batch_stats=batch_stats, memories={**state.memories, 'rows': rows})

  def after_pass(self, state: TrainState, initial: Any) -> TrainState:
    """The state that training starts with; `initial` are the statistics from before the pass."""
    return state if self.prior.keep_statistics else state.replace(batch_stats=initial)


def _has_table(config, num_instances):
  """Whether the hardest classes are found for all images at the start of an epoch."""
  table = config.smoothing.table
  return table == 'epoch' or (table == 'auto' and num_instances <= _MOST_FOR_A_TABLE)


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> OneMillion:
  """Creates the method from `config`.

  Raises:
    UserError: for settings that are incompatible with each other or with the number of images.
  """
  alpha, k, drawn = config.smoothing.alpha, config.smoothing.k, config.classifier.drawn
  if config.prior.batch_norm not in PRIORS:
    raise UserError(f"config.prior.batch_norm is '{config.prior.batch_norm}'; available: "
                    f"{', '.join(PRIORS)}.")
  if config.smoothing.table not in TABLES:
    raise UserError(f"config.smoothing.table is '{config.smoothing.table}'; available: {', '.join(TABLES)}.")
  if config.smoothing.search not in SEARCHES:
    raise UserError(f"config.smoothing.search is '{config.smoothing.search}'; available: "
                    f"{', '.join(SEARCHES)}.")
  if config.smoothing.search == 'approximate' and not _has_table(config, num_instances):
    raise UserError("config.smoothing.search is 'approximate', but the hardest classes are found for each "
                    "batch, exactly: set it to 'exact', or config.smoothing.table to 'epoch'.")
  if not 0 <= alpha < 1:
    raise UserError(f'config.smoothing.alpha is {alpha}; it must be at least 0 (no smoothing) and below 1.')
  if alpha and drawn:
    raise UserError('Labels are smoothed over all classes only: set config.smoothing.alpha to 0 for drawn '
                    'negatives, or config.classifier.drawn to 0 for all of them.')
  if alpha and not 0 < k < num_instances:
    raise UserError(f'config.smoothing.k is {k}: the hardest classes of an image are chosen among the '
                    f'{num_instances - 1} others, so it must be from 1 to that.')
  if not 0 <= drawn <= num_instances:
    raise UserError(f'config.classifier.drawn is {drawn}: of {num_instances} classes as many can be drawn, '
                    'and 0 takes all of them.')
  softmax = partitioned.Softmax(num_instances, config.temperature, mesh, dtype, smoothing=alpha,
                                num_drawn=drawn, chunk_size=config.classifier.chunk_size,
                                kernel=softmax_kernel(config))
  return OneMillion(config, num_instances, mesh, dtype, softmax)
