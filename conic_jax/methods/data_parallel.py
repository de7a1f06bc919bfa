"""Instance classification by plain data-parallel training: the baseline of One-Million's Table 1.

Every device has a copy of all N rows, their gradient and their momentum, and scores its own images against
all rows; the gradients [N, D] are summed over the devices. The rows are parameters like the encoder's,
trained by its optimizer. `one_million` is the same training with the rows split.

Source: "Train a One-Million-Way Instance Classifier…", "Hybrid Parallelism", Table 1 and Figure 3 (DDP).
"""
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax import losses
from conic_jax.errors import UserError
from conic_jax.losses import partitioned
from conic_jax.memories.instance_rows import Classified, initial_rows
from conic_jax.methods.instance import InstanceMethod, mean_weights


class DataParallel(InstanceMethod):
  """The method; see the module."""
  rows = None

  def __init__(self, config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype):
    super().__init__(config, num_instances, mesh, dtype, alpha=0.0)
    self.memories, self.norm = {}, config.classifier.norm

  def init(self, rng, batch):
    params, batch_stats, _ = super().init(rng, batch)
    rows = initial_rows(jax.random.fold_in(rng, 0), jnp.arange(self.num_instances), self.dim, self.norm)
    return {**params, 'classifier': rows}, batch_stats, {}

  def classify(self, params, memories, features, batch, rng):
    count = len(features) // len(batch['id'])
    ids = jnp.repeat(batch['id'], count)
    logits = features @ losses.normalise(params['classifier']).T / self.softmax.temperature
    log_normaliser = jax.nn.logsumexp(logits, axis=1)
    own_logit = jnp.take_along_axis(logits, ids[:, None], axis=1)[:, 0]
    loss = log_normaliser - own_logit
    scores = partitioned.Scores(loss, own_logit >= logits.max(axis=1), log_normaliser, own_logit,
                                jnp.expm1(-loss))
    return Classified(features, ids, mean_weights(batch['valid'], count), scores)


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> DataParallel:
  """Creates the method from `config`.

  Raises:
    UserError: if the rows' optimizer settings differ from the encoder's.
  """
  ours, encoders = config.classifier, config.optimizer
  if (ours.lr_scale, ours.momentum, ours.weight_decay) != (1.0, encoders.momentum, encoders.weight_decay):
    raise UserError('data_parallel learns the rows with the encoder\'s optimizer: set '
                    'config.classifier.lr_scale to 1, and config.classifier.momentum and weight_decay to '
                    'those of config.optimizer, or take config.method one_million.')
  return DataParallel(config, num_instances, mesh, dtype)
