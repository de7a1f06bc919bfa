"""The linear protocol: a linear layer on the frozen encoder, with one rate or the best of several."""
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from conic_jax import optim
from conic_jax.data import augment, pipeline, sources
from conic_jax.data.sampler import Sampler
from conic_jax.errors import UserError
from conic_jax.evals import accuracy
from conic_jax.evals.features import Features, FrozenEncoder, check_finite, extract
from conic_jax.hardware.mesh import cut_batch_size, process_rows, replicated
from conic_jax.losses import normalise
from conic_jax.run.loop import Figures, Phase, run_steps
from conic_jax.run.session import Session
from conic_jax.views import CentralView, supervised

_HELD_OUT = 0.1
_CONFUSED_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class LinearSettings:
  """Training settings of the linear layer: SGD without weight decay.

  ConIC's appendix C.2 gives 100 epochs and the rate 75 but no batch size: the rate is used as
  given, never scaled by the batch size. The effect of a rate grows with the squared norm of the features,
  so on other encoders and small data sets a rate meant for ImageNet may diverge: give several.

  Attributes:
    learning_rates: a single rate is used as is; of several, the best on a held-out tenth of the
      training images is used (ties go to the first).
    epochs: passes over the training images.
    batch_size: images per step; capped at the size of the data set.
    momentum: momentum of SGD.
    schedule: 'cosine', to zero, or 'steps'.
    milestones: fractions of the training at which 'steps' divides the rate by 10.
    normalise: 'none', 'l2' (unit features) or 'standardise' (zero mean and unit variance per
      feature, with statistics gathered in training).
    crop: smallest and largest area of the training crop as a share of the image.
  """
  learning_rates: tuple[float, ...]
  epochs: int
  batch_size: int
  momentum: float
  schedule: str
  milestones: tuple[float, ...]
  normalise: str
  crop: tuple[float, float]

  def __post_init__(self):
    if self.normalise not in ('none', 'l2', 'standardise'):
      raise UserError(f"config.linear.normalise is '{self.normalise}'; available: none, l2, "
                      'standardise.')
    optim.check_relative(self.schedule, self.milestones, 'config.linear')
    if not self.learning_rates:
      raise UserError('config.linear.learning_rates is empty: name at least one rate.')


@dataclasses.dataclass(frozen=True)
class LinearResult:
  """Result of the linear layer on the test images; accuracies are shares of 1.

  Attributes:
    top1, top5: accuracies with the chosen learning rate.
    learning_rate: the chosen rate.
    by_learning_rate: top-1 accuracy of every learning rate on the test images.
    held_out: top-1 accuracy of every learning rate on the held-out training images, which decided
      the choice; empty if there was a single rate.
    feature_norm: mean norm of the test features, before any normalisation.
    feature_std: standard deviation of each test feature, averaged over features.
    stable_rate: gradient descent with momentum m is stable up to this rate on the test images, whatever the
      predictions: 2(1 + m)/L, where the cross entropy's curvature L is at most half the mean square of the
      layer's input, including its constant 1: 4(1 + m)/E(‖x‖² + 1). Larger rates may be stable too.
    confusion: confusion matrix of the chosen rate, images of class i predicted as class j, int [C, C]; None
      if there are more than a thousand classes.
  """
  top1: float
  top5: float
  learning_rate: float
  by_learning_rate: dict[float, float]
  held_out: dict[float, float]
  feature_norm: float
  feature_std: float
  stable_rate: float
  confusion: np.ndarray | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Heads:
  """One linear layer per learning rate, and the statistics of their common input features."""
  kernel: jax.Array    # [L, F, C]
  bias: jax.Array      # [L, C]
  mean: jax.Array      # [F]
  variance: jax.Array  # [F]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
  """Training state: number of steps done, heads, and their momentum."""
  step: jax.Array
  heads: _Heads
  trace: Any


def linear_accuracy(encoder: FrozenEncoder, train_source: sources.Source, test_source: sources.Source, *,
                    view: CentralView, settings: LinearSettings, seed: int, mesh: Mesh,
                    report: Callable[[dict[str, float]], None] | None = None) -> LinearResult:
  """Trains a linear classifier on the frozen encoder and tests it.

  The heads of all learning rates are trained together on the same features.

  Args:
    encoder: the encoder; the layer learns on the features of its `encode`.
    train_source: labelled training images.
    test_source: labelled test images; they are not used to choose anything.
    view: how a test image becomes an input; gives size and normalisation of the training crops too.
    settings: training settings of the layer.
    seed: seed of the image order and the augmentation.
    mesh: the mesh.
    report: called after each epoch with 'epoch', 'step' and, for each rate, 'loss_<rate>'.

  Raises:
    UserError: if a source has no labels, there are too few images, or the settings are invalid.
  """
  _check_labels(train_source, test_source)
  rates = settings.learning_rates
  tune_source = None
  if len(rates) > 1:
    held_out = _is_held_out(train_source.num_images)
    tune_source = sources.Subset(train_source, np.flatnonzero(held_out))
    train_source = sources.Subset(train_source, np.flatnonzero(~held_out))
  settings = dataclasses.replace(settings, batch_size=cut_batch_size(
    settings.batch_size, train_source.num_images, mesh, 'config.linear.batch_size'))
  training_view = supervised(view.spec, view.spec.size, settings.crop)
  heads = _train(encoder, train_source, training_view, settings, seed, mesh, report)

  def test(source):
    features = extract(encoder.encode, encoder.variables, source, view=view, batch_size=settings.batch_size,
                       mesh=mesh)
    check_finite(features)
    hits, total = _count_hits(heads, features, normalise=settings.normalise)
    return features, np.asarray(hits) / max(int(total), 1)

  best, by_held_out = 0, {}
  if tune_source is not None:
    _, shares = test(tune_source)
    best = int(np.argmax(shares[:, 0]))
    by_held_out = dict(zip(rates, shares[:, 0].tolist(), strict=True))
  features, shares = test(test_source)
  norm, std, square = map(float, _scale(heads, features, normalise=settings.normalise))
  confusion = None
  if test_source.num_classes <= _CONFUSED_CLASSES:
    confusion = np.asarray(_confusion(heads, best, features, normalise=settings.normalise))
  return LinearResult(
    top1=float(shares[best, 0]), top5=float(shares[best, 1]), learning_rate=rates[best],
    by_learning_rate=dict(zip(rates, shares[:, 0].tolist(), strict=True)), held_out=by_held_out,
    feature_norm=norm, feature_std=std, stable_rate=4 * (1 + settings.momentum) / square,
    confusion=confusion)


def _is_held_out(num_images):
  """Selects about a tenth of any range of ids: multiples of the golden ratio fall evenly in [0, 1)."""
  golden = np.uint32(2654435769)
  return np.arange(num_images, dtype=np.uint32) * golden < np.uint32(_HELD_OUT * 2**32)


def _check_labels(train_source, test_source):
  for which, source in (('training', train_source), ('test', test_source)):
    if not source.num_classes:
      raise UserError(f'The {which} images have no labels: the linear protocol needs a source with '
                      'classes, such as a folder with one subfolder a class.')


def _train(encoder, source, view, settings, seed, mesh, report):
  batch_size = settings.batch_size
  sampler = Sampler(source.num_images, batch_size, seed)
  steps_per_epoch = sampler.steps_per_epoch
  total_steps = settings.epochs * steps_per_epoch
  images = jax.ShapeDtypeStruct((batch_size, view.size, view.size, 3), jnp.float32)
  width = jax.eval_shape(encoder.encode, encoder.variables, images).shape[1]
  heads = _init(len(settings.learning_rates), width, source.num_classes)
  state = _State(jnp.int32(0), heads, _optimizer(settings).init((heads.kernel, heads.bias)))

  def tell(state: _State, done: int, figures: Figures) -> None:
    del state
    if report is not None:
      losses = {name: value for name, value in figures.items() if name.startswith('loss_')}
      report({'epoch': done // steps_per_epoch, 'step': done, **losses})

  phase = Phase(
    name=' of the linear protocol', last_step=total_steps, batch_size=batch_size,
    step=lambda state, batch: _step(state, encoder.variables, batch, seed=seed, encode=encoder.encode,
                                    view=view, settings=settings, steps_per_epoch=steps_per_epoch),
    batches=lambda first: pipeline.train_batches(source, (view,), sampler, start_step=first,
                                                 rows=process_rows(mesh, batch_size)),
    undecodable=pipeline.UndecodableImages(source), report=tell, log_every=steps_per_epoch)
  with Session(Path(), mesh) as session:
    return run_steps(phase, jax.device_put(state, replicated(mesh)), session).heads


def _init(num_rates, width, num_classes):
  return _Heads(jnp.zeros((num_rates, width, num_classes)), jnp.zeros((num_rates, num_classes)),
                jnp.zeros(width), jnp.ones(width))


def _optimizer(settings):
  return optax.trace(settings.momentum)


@functools.partial(jax.jit, static_argnames=('seed', 'encode', 'view', 'settings', 'steps_per_epoch'),
                   donate_argnames='state')
def _step(state, variables, batch, *, seed, encode, view, settings, steps_per_epoch):
  """One step of a `Phase`: returns the new state, the loss of each rate, and {}."""
  step, heads = state.step, state.heads
  keys = augment.view_keys(seed, step // steps_per_epoch, batch['id'], 1)
  images = augment.augment(batch['views'][0], batch['flip'], keys, view)[:, 0]
  features = jax.lax.stop_gradient(encode(variables, images).astype(jnp.float32))
  valid = batch['valid'] & (batch['label'] >= 0)
  if settings.normalise == 'standardise':
    heads = _update_statistics(heads, features, valid, step)
  features = _normalise(features, heads, settings.normalise)

  def loss(layer):
    logits = _logits(features, *layer)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'][None])
    means = jnp.sum(losses, axis=1, where=valid[None]) / jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32)
    return jnp.sum(means), means

  layer = heads.kernel, heads.bias
  gradients, losses = jax.grad(loss, has_aux=True)(layer)
  updates, trace = _optimizer(settings).update(gradients, state.trace)
  schedule = optim.relative_schedule(settings.schedule, settings.milestones,
                                     settings.epochs * steps_per_epoch)
  rates = jnp.asarray(settings.learning_rates) * schedule(step)
  kernel, bias = jax.tree.leaves(updates)
  updates = -rates[:, None, None] * kernel, -rates[:, None] * bias
  kernel, bias = jax.tree.leaves(optax.apply_updates(layer, updates))
  heads = dataclasses.replace(heads, kernel=kernel, bias=bias)
  named = {f'loss_{rate:g}': loss for rate, loss in zip(settings.learning_rates, losses, strict=True)}
  return _State(step + 1, heads, trace), named, {}


def _logits(features, kernel, bias):
  """Logits [L, B, C] of every head."""
  return jnp.einsum('bf,lfc->lbc', features, kernel, preferred_element_type=jnp.float32,
                    precision=jax.lax.Precision.HIGHEST) + bias[:, None]


def _update_statistics(heads, features, valid, step):
  """Running averages over all batches so far; none is stale because the encoder is frozen."""
  total, steps = jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32), jnp.float32(step + 1)
  def average(old, values):
    return old + (jnp.sum(values, axis=0, where=valid[:, None]) / total - old) / steps
  mean = average(heads.mean, features)
  variance = average(heads.variance, (features - mean[None])**2)
  return dataclasses.replace(heads, mean=mean, variance=variance)


def _normalise(features, heads, how):
  if how == 'l2':
    return normalise(features, float(np.finfo(np.float32).tiny))
  if how == 'standardise':
    return (features - heads.mean[None]) * jax.lax.rsqrt(heads.variance[None] + 1e-5)
  return features


@functools.partial(jax.jit, static_argnames='normalise')
def _count_hits(heads: _Heads, test: Features, *, normalise):
  """Top-1 and top-5 hits of every head, [L, 2], and the number of images."""
  valid = test.valid & (test.labels >= 0)
  total = jnp.sum(valid)
  features = _normalise(test.features, heads, normalise)

  def of_head(layer):
    logits = _logits(features, *jax.tree.map(lambda part: part[None], layer))[0]
    return accuracy.hits(logits, test.labels, valid)

  return jax.lax.map(of_head, (heads.kernel, heads.bias)), total


@functools.partial(jax.jit, static_argnames='normalise')
def _scale(heads: _Heads, test: Features, *, normalise):
  """Mean norm and standard deviation of the features, and the mean square of the layers' input."""
  squares = jnp.sum(_normalise(test.features, heads, normalise) ** 2, axis=1) + 1
  norm = jnp.mean(jnp.linalg.norm(test.features, axis=1), where=test.valid)
  std = jnp.std(test.features, axis=0, where=test.valid[:, None])
  return norm, jnp.mean(std), jnp.mean(squares, where=test.valid)


@functools.partial(jax.jit, static_argnames='normalise')
def _confusion(heads: _Heads, chosen: int, test: Features, *, normalise):
  """Confusion matrix of a head, [C, C]; images with non-finite logits are not counted."""
  layer = heads.kernel[chosen][None], heads.bias[chosen][None]
  logits = _logits(_normalise(test.features, heads, normalise), *layer)[0]
  counted = test.valid & (test.labels >= 0) & jnp.all(jnp.isfinite(logits), axis=1)
  return accuracy.confusion(jnp.argmax(logits, axis=1), test.labels, counted, heads.bias.shape[1])
