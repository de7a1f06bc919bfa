"""Fine-tuning: encoder and linear layer trained on labels together, each with its own learning rate."""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from conic_jax import models, optim
from conic_jax.data import augment, pipeline
from conic_jax.data.balanced import balanced_subset
from conic_jax.data.sampler import Sampler
from conic_jax.data.sources import Source
from conic_jax.errors import UserError
from conic_jax.evals import accuracy, encoders, protocols, tuning
from conic_jax.evals.encoders import Encoder
from conic_jax.evals.features import extract
from conic_jax.hardware.mesh import batch_sharding, cut_batch_size, process_rows, replicated
from conic_jax.run.loop import Figures, Phase
from conic_jax.run.session import Session
from conic_jax.run.state import TrainState, supervised_state
from conic_jax.views import CentralView, Views, supervised


@dataclasses.dataclass(frozen=True)
class FinetuneSettings:
  """Training settings of encoder and linear layer, on the cross entropy.

  Attributes:
    learning_rate: learning rate of the encoder.
    head_learning_rate: learning rate of the linear layer, which starts at zero.
    epochs: passes over the training images.
    batch_size: images per step; capped at the size of the data set.
    optimizer: 'sgd', with momentum, or 'adamw', with β₂ of 0.999.
    momentum: momentum of SGD; β₁ of adamw.
    weight_decay: weight decay of all parameters.
    layer_decay: γ: what lies d blocks before the output learns at γ^d times the encoder's rate (Clark et al.
      2020; Bao et al. 2022, BEiT).
    schedule: 'cosine', to zero, or 'steps'.
    milestones: fractions of the training at which 'steps' divides the rates by 10.
    crop: smallest and largest area of the training crop as a share of the image.
    labels: share of the labels to use: 1 uses all images; less draws a class-balanced subset, see
      `data.balanced`.
  """
  learning_rate: float
  head_learning_rate: float
  epochs: int
  batch_size: int
  optimizer: str
  momentum: float
  weight_decay: float
  layer_decay: float
  schedule: str
  milestones: tuple[float, ...]
  crop: tuple[float, float]
  labels: float

  def __post_init__(self):
    if self.optimizer not in ('sgd', 'adamw'):
      raise UserError(f"config.finetune.optimizer is '{self.optimizer}'; available: sgd, adamw.")
    optim.check_relative(self.schedule, self.milestones, 'config.finetune')
    if not 0 < self.labels <= 1:
      raise UserError(f'config.finetune.labels is {self.labels}: it is the share of the labels that is used, '
                      'above 0 and up to 1.')


def run(encoder: Encoder, config: Any, session: Session) -> protocols.Outcome:
  """Fine-tunes a copy of an encoder on `config.data` with `config.finetune`, and tests it.

  The state is saved in the session's folder after each epoch; a new run resumes from it.

  Returns:
    The figures of `finetune`.

  Raises:
    UserError: as in `finetune`, or if the data has no labels.
  """
  train_source, test_source = protocols.labelled_sources(config, session.mesh)
  return protocols.Outcome(finetune(encoder, train_source, test_source, config, session))


def finetune(encoder: Encoder, train_source: Source, test_source: Source, config: Any,
             session: Session) -> dict[str, Any]:
  """Fine-tunes a copy of an encoder with `config.finetune`, and tests it.

  Returns:
    'top1' and 'top5' on the test images, shares of 1, and 'num_labels', the number of training images.

  Raises:
    UserError: if the settings are invalid, there are too few images, or training diverges.
  """
  settings = FinetuneSettings(**config.finetune)
  view = protocols.view_of(config)
  if settings.labels < 1:
    session.log('Reading the labels to choose from')
    train_source = balanced_subset(train_source, settings.labels, config.seed)
  settings = dataclasses.replace(settings, batch_size=cut_batch_size(
    settings.batch_size, train_source.num_images, session.mesh, 'config.finetune.batch_size',
    'labelled images'))
  sampler = Sampler(train_source.num_images, settings.batch_size, config.seed)
  session.log(f'{train_source.num_images} labelled images of {train_source.num_classes} classes, '
              f'{sampler.steps_per_epoch} steps an epoch')

  network = encoders.trainable(encoder)
  saved = tuning.open_saved(encoder, config, session)
  state = train(network, encoder.variables, train_source, view.spec, settings, config.seed, session, saved)
  top1, top5 = evaluate(network, state, test_source, view, config.eval.batch_size, session.mesh)
  return {'top1': top1, 'top5': top5, 'num_labels': train_source.num_images}


def train(network: models.EncoderModule, variables: Any, source: Source, spec: Views,
          settings: FinetuneSettings, seed: int, session: Session,
          saved: tuning.Saved | None = None) -> TrainState:
  """Trains a copy of `variables`, and a linear layer on the features, for all epochs.

  Args:
    network: the encoder's module.
    variables: its {'params', 'batch_stats'}; they are not modified.
    source: labelled images.
    spec: gives size and normalisation.
    settings: the training settings.
    seed: seed of the image order and the augmentation.
    session: logs the loss of every epoch.
    saved: where to save the state after every epoch and to resume from; None to save nothing.
  """
  mesh = session.mesh
  sampler = Sampler(source.num_images, settings.batch_size, seed)
  steps_per_epoch = sampler.steps_per_epoch
  view = supervised(spec, spec.size, settings.crop)
  everywhere = replicated(mesh)
  step = jax.jit(make_step(network, view, settings, seed, steps_per_epoch), donate_argnums=0,
                 in_shardings=(everywhere, batch_sharding(mesh)), out_shardings=everywhere)

  def report(state: TrainState, done: int, figures: Figures) -> None:
    del state
    session.log(f'epoch {done // steps_per_epoch}/{settings.epochs}  loss {figures["loss"]:.4g}')

  phase = Phase(
    name=' of the fine-tuning', step=step, last_step=settings.epochs * steps_per_epoch,
    batch_size=settings.batch_size,
    batches=lambda first: pipeline.train_batches(source, (view,), sampler, start_step=first,
                                                 rows=process_rows(mesh, settings.batch_size)),
    undecodable=pipeline.UndecodableImages(source), report=report, log_every=steps_per_epoch,
    steps_per_epoch=steps_per_epoch, save_every=steps_per_epoch,
    identity={'images': source.num_images, 'config.finetune': tuning.as_json(settings)},
    advice=f'Lower config.finetune.learning_rate {settings.learning_rate} or '
           f'config.finetune.head_learning_rate {settings.head_learning_rate}.')
  begin = functools.partial(init_state, network, variables, source.num_classes, settings)
  return tuning.train(phase, begin, session, saved)


def init_state(network: models.EncoderModule, variables: Any, num_classes: int,
               settings: FinetuneSettings) -> TrainState:
  """The initial state: copies of the encoder's variables and a linear layer of zeros."""
  head = {'kernel': jnp.zeros((network.num_features, num_classes)), 'bias': jnp.zeros(num_classes)}
  params = {'encoder': jax.tree.map(jnp.array, variables['params']), 'head': head}
  batch_stats = {'encoder': jax.tree.map(jnp.array, variables.get('batch_stats', {}))}
  return supervised_state(params, batch_stats, optimizer_of(settings))


def optimizer_of(settings: FinetuneSettings) -> optax.GradientTransformationExtraArgs:
  """The optimizer of all layers, for rates that are applied to its updates."""
  if settings.optimizer == 'adamw':
    return optim.adamw(settings.weight_decay, settings.momentum, 0.999)
  return optim.sgd(settings.weight_decay, settings.momentum)


def rates_of(params: Any, settings: FinetuneSettings) -> Any:
  """The learning rate of each array of {'encoder', 'head'} at the peak of the schedule."""
  encoder = jax.tree.map(lambda _: settings.learning_rate, params['encoder'])
  if settings.layer_decay < 1:
    encoder = jax.tree.map(lambda distance: settings.learning_rate * settings.layer_decay**distance,
                           models.distances(params['encoder']))
  return {'encoder': encoder, 'head': jax.tree.map(lambda _: settings.head_learning_rate, params['head'])}


def make_step(network: models.EncoderModule, view: Views, settings: FinetuneSettings, seed: int,
              steps_per_epoch: int) -> Callable:
  """Makes the pure step (state, batch) -> (state, metrics, {}), to be jitted."""
  optimizer = optimizer_of(settings)
  total_steps = settings.epochs * steps_per_epoch
  schedule = optim.relative_schedule(settings.schedule, settings.milestones, total_steps)

  def step_fn(state, batch):
    step = state.step
    keys = augment.view_keys(seed, step // steps_per_epoch, batch['id'], 1)
    images = augment.augment(batch['views'][0], batch['flip'], keys, view)[:, 0]
    valid = batch['valid'] & (batch['label'] >= 0)

    def loss_fn(params):
      variables = encoder_of(params, state.batch_stats)
      features, changed = network.apply(variables, images, mode='batch', mask=valid, mutable=['batch_stats'])
      logits = logits_of(params['head'], features)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
      total = jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32)
      return jnp.sum(losses, where=valid) / total, changed.get('batch_stats', {})

    (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, lr=schedule(step))
    updates: Any = jax.tree.map(lambda rate, update: rate * update, rates_of(state.params, settings), updates)
    state = state.replace(step=step + 1, updates=step + 1, params=optax.apply_updates(state.params, updates),
                          batch_stats={'encoder': batch_stats}, opt_state=opt_state)
    return state, {'loss': loss}, {}
  return step_fn


def encoder_of(params: Any, batch_stats: Any) -> dict[str, Any]:
  """The encoder's variables in a state."""
  return {'params': params['encoder'], 'batch_stats': batch_stats['encoder']}


def logits_of(head: Any, features: Any) -> jax.Array:
  """Logits float32 [B, C] of features [B, F]."""
  return jnp.matmul(features, head['kernel'], precision=jax.lax.Precision.HIGHEST) + head['bias'][None]


def evaluate(network: models.EncoderModule, state: TrainState, source: Source, view: CentralView,
             batch_size: int, mesh: Mesh) -> tuple[float, float]:
  """Top-1 and top-5 accuracy on the central crop of every image of a source, with frozen batch norm."""
  def logits(trained: Any, images: jax.Array) -> jax.Array:
    params, batch_stats = trained
    return logits_of(params['head'], network.apply(encoder_of(params, batch_stats), images, mode='frozen'))

  found = extract(logits, (state.params, state.batch_stats), source, view=view, batch_size=batch_size,
                  mesh=mesh)
  hits, total = _count(found.features, found.labels, found.valid)
  top1, top5 = np.asarray(hits) / max(int(total), 1)
  return float(top1), float(top5)


@jax.jit
def _count(logits, labels, valid):
  counted = valid & (labels >= 0)
  return accuracy.hits(logits, labels, counted), jnp.sum(counted)
