"""One-Million: instance classification over all images with a contrastive prior and smoothed labels.

J = −mean log(Σⱼ yⱼ e^{cos(wⱼ, x)/τ} / Σⱼ e^{cos(wⱼ, x)/τ}), y one minus α at the own class and α/K at the
K classes whose rows are nearest to the own row.

Source: "Train a One-Million-Way Instance Classifier for Unsupervised Visual Representation Learning".
"""
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax import losses
from conic_jax.classifier import full, hardest, smoothing
from conic_jax.errors import UserError
from conic_jax.mesh import split
from conic_jax.methods.instance import InstanceMethod, mean_weights
from conic_jax.methods.network import merge_views

PRIORS = ('none', 'running', 'frozen')
TABLES = ('auto', 'epoch', 'batch')
# Up to here 'auto' finds the hardest classes of all images at once: N × K ids, and N² cosines an epoch.
_MOST_FOR_A_TABLE = 10 ** 8


class OneMillion(InstanceMethod):
  """The method; see the module.

  The contrastive prior is one pass over the data with the random network before training, the features
  becoming the rows. An image is seen as one training view, drawn for this pass alone, in a shuffled order;
  batch norm is *running* (it normalises by the statistics from before the batch and then updates them) or
  frozen. The features are written as they are, before any normalisation, unless `config.prior.normalise`.
  Training goes on with the statistics if `config.prior.keep_statistics`, and else starts from the initial
  ones; in training they only matter to what is evaluated.
  """

  def __init__(self, config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype,
               softmax: full.Softmax):
    super().__init__(config, num_instances, mesh, dtype, alpha=0.0, softmax=softmax)
    self.prior, self.num_hardest, self.table = config.prior, config.smoothing.k, config.smoothing.table
    if self.table == 'auto':
      self.table = 'epoch' if num_instances <= _MOST_FOR_A_TABLE else 'batch'
    self.passes_before_training = config.prior.batch_norm != 'none'
    self.prepares_epochs = softmax.smoothing > 0 and self.table == 'epoch'

  def init_classifier(self, rng):
    state = super().init_classifier(rng)
    if self.prepares_epochs:
      state['hardest'] = jnp.zeros((len(state['rows'].weights), self.num_hardest), jnp.int32)
    return state

  def classify(self, params, method_state, features, batch, rng):
    count = len(features) // len(batch['id'])
    ids = jnp.repeat(batch['id'], count)
    weights = method_state['rows'].weights
    key = rng if self.softmax.num_drawn else None
    nearest = None
    if self.prepares_epochs:
      nearest = smoothing.look_up(method_state['hardest'], batch['id'], self.mesh)
    elif self.softmax.smoothing:
      nearest = hardest.for_batch(weights, batch['id'], num_instances=self.num_instances,
                                  k=self.num_hardest, mesh=self.mesh)
    scores = full.scores(weights, features, ids, self.softmax, nearest, key)
    return full.Batch(features, ids, mean_weights(batch['valid'], count), scores, nearest, key)

  def before_training(self, state, batch):
    features, batch_stats = self.network.project(
      state.params, state.batch_stats, merge_views(batch['views'][0]), batch['valid'], self.prior.batch_norm)
    if self.prior.normalise:
      features = losses.normalise(features)
    rows = full.write(state.method_state['rows'], batch['id'], features, batch['valid'], self.mesh)
    return state.replace(batch_stats=batch_stats, method_state={**state.method_state, 'rows': rows})

  def after_pass(self, state, initial):
    return state if self.prior.keep_statistics else state.replace(batch_stats=initial)

  def before_epoch(self, state):
    nearest = hardest.table(state.method_state['rows'].weights, num_instances=self.num_instances,
                            k=self.num_hardest, mesh=self.mesh)
    return state.replace(method_state={**state.method_state, 'hardest': nearest})

  def partition_rules(self):
    return (*super().partition_rules(), (r'^hardest', split(self.mesh)))


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> OneMillion:
  """Makes it with the settings of `config`.

  Raises:
    UserError: for settings that do not go together, or that no such number of images allows.
  """
  alpha, k, drawn = config.smoothing.alpha, config.smoothing.k, config.classifier.drawn
  if config.prior.batch_norm not in PRIORS:
    raise UserError(f"config.prior.batch_norm is '{config.prior.batch_norm}'; there is: {', '.join(PRIORS)}.")
  if config.smoothing.table not in TABLES:
    raise UserError(f"config.smoothing.table is '{config.smoothing.table}'; there is: {', '.join(TABLES)}.")
  if not 0 <= alpha < 1:
    raise UserError(f'config.smoothing.alpha is {alpha}: it lies from 0 to below 1; 0 is without smoothing.')
  if alpha and drawn:
    raise UserError('Labels are smoothed over all classes only: set config.smoothing.alpha to 0 for drawn '
                    'negatives, or config.classifier.drawn to 0 for all of them.')
  if alpha and not 0 < k < num_instances:
    raise UserError(f'config.smoothing.k is {k}: the hardest classes of an image are chosen among the '
                    f'{num_instances - 1} others, so it is at least 1 and at most that.')
  if not 0 <= drawn <= num_instances:
    raise UserError(f'config.classifier.drawn is {drawn}: of {num_instances} classes as many can be drawn, '
                    'and 0 takes all of them.')
  softmax = full.Softmax(num_instances, config.temperature, mesh, dtype, smoothing=alpha, num_drawn=drawn,
                         chunk_size=config.classifier.chunk_size)
  return OneMillion(config, num_instances, mesh, dtype, softmax)
