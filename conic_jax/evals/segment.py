"""Semantic segmentation: DeepLabV3 fine-tuned from the encoder (ConIC, Appendix C), single-scale mIoU."""
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from PIL import Image

from conic_jax import visualise
from conic_jax.data import augment, mask_pipeline, masks, pipeline
from conic_jax.errors import UserError
from conic_jax.evals import encoders, protocols, tuning
from conic_jax.evals.encoders import Encoder
from conic_jax.hardware.mesh import (
  batch_sharding,
  check_batch_size,
  cut_batch_size,
  process_rows,
  replicated,
  to_global,
)
from conic_jax.models import DeepLabV3
from conic_jax.optim import sgd
from conic_jax.run.loop import Figures, Phase
from conic_jax.run.session import Session
from conic_jax.run.state import TrainState, supervised_state
from conic_jax.views import Views

OUTPUT_STRIDE = 8
_PICTURED = 6


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """Training and test settings of a segmentation network: the group `config.segmentation`.

  Attributes:
    num_classes: C.
    classes: their names, [C]; empty to use numbers.
    ids: the id of each class in the masks, [C]; empty for 0 … C - 1.
    ignore: ids of pixels to ignore in training and evaluation.
    iterations, batch_size, learning_rate, momentum, weight_decay: of SGD, the same for all layers.
    power: the rate at iteration i is learning_rate · (1 - i / iterations)^power.
    crop: height and width of training crops in pixels.
    scale: smallest and largest random scale factor of a training image.
    short_side: pixels to resize the short side to, in training before `scale`; 0 keeps the image's size.
    test_size: height and width of the canvas for test images; larger images are shrunk to fit.
    rates: dilation of each atrous convolution.
    channels: channels of the head.
    auxiliary_weight: weight of the auxiliary loss; the main loss has weight 1.
    report_every: iterations between reports.
  """
  num_classes: int
  classes: tuple[str, ...]
  ids: tuple[int, ...]
  ignore: tuple[int, ...]
  iterations: int
  batch_size: int
  learning_rate: float
  momentum: float
  weight_decay: float
  power: float
  crop: tuple[int, int]
  scale: tuple[float, float]
  short_side: int
  test_size: tuple[int, int]
  rates: tuple[int, ...]
  channels: int
  auxiliary_weight: float
  report_every: int

  def __post_init__(self):
    if self.classes and len(set(self.classes)) != self.num_classes:
      raise UserError(f'config.segmentation.classes has {len(set(self.classes))} different names and '
                      f'num_classes is {self.num_classes}: name every class, or none with ().')
    if min(*self.crop, *self.test_size, self.iterations, self.report_every, self.channels) < 1:
      raise UserError('config.segmentation.crop, test_size, iterations, report_every and channels are at '
                      'least 1.')
    if not self.rates or not 0 < self.scale[0] <= self.scale[1]:
      raise UserError(f'config.segmentation.rates is {self.rates} and scale {self.scale}: give at least one '
                      'rate, and two factors above 0, the smaller first.')

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of the classes, [C]."""
    return self.classes or tuple(map(str, range(self.num_classes)))

  def label_table(self) -> np.ndarray:
    """The class of each id in the masks: `masks.label_table` of these settings, uint8 [256]."""
    return masks.label_table(self.num_classes, self.ids, self.ignore)


@dataclasses.dataclass(frozen=True)
class Example:
  """A test image, uint8 [h, w, 3], with its true and predicted classes, uint8 [h, w]."""
  image: np.ndarray
  truth: np.ndarray
  prediction: np.ndarray


def run(encoder: Encoder, config: Any, session: Session) -> protocols.Outcome:
  """Fine-tunes DeepLabV3 on `config.data.train` and tests it on `config.data.test`.

  Args:
    encoder: initial backbone; it is not modified.
    config: config of configs/segment.py.
    session: its folder keeps the network; a new run resumes from its last checkpoint.

  Returns:
    The figures of `scores`, and a picture of some predictions.

  Raises:
    UserError: if the images, the masks or the settings are invalid.
  """
  settings, mesh = Segmentation(**config.segmentation), session.mesh
  check_batch_size(settings.batch_size, mesh, 'config.segmentation.batch_size')
  check_batch_size(config.eval.batch_size, mesh, 'config.eval.batch_size')
  table = settings.label_table()
  train_pairs, test_pairs = (masks.open_pairs(config.data, split)
                             for split in (config.data.train, config.data.test))
  for split, pairs in ((config.data.train, train_pairs), (config.data.test, test_pairs)):
    pixels = masks.check_pairs(pairs, table)
    masks.check_classes(pixels, table, split, every=pairs is train_pairs)
    session.log(masks.describe_ids(pixels, table, split))
  settings = dataclasses.replace(settings, batch_size=cut_batch_size(
    settings.batch_size, train_pairs.num_images, mesh, 'config.segmentation.batch_size', 'images with masks'))
  model, variables = build(encoder, settings, config.seed, mesh)
  saved = tuning.open_saved(encoder, config, session)
  variables = train(model, variables, train_pairs, settings, encoder.views, config.seed, session, saved)
  confusion, examples = test(model, variables, test_pairs, settings, encoder.views, config.eval.batch_size,
                             mesh, session.log)
  pictures = {}
  if examples:
    pictures['predictions'] = functools.partial(
      visualise.segmentation_picture, [example.image for example in examples],
      [example.truth for example in examples], [example.prediction for example in examples],
      settings.class_names)
  return protocols.Outcome(scores(confusion, settings.class_names), pictures)


def build(encoder: Encoder, settings: Segmentation, seed: int, mesh: Mesh) -> tuple[DeepLabV3, Any]:
  """Builds DeepLabV3 on the dilated encoder.

  Returns:
    The module, and its variables on every device: copies of the encoder's, and newly initialised heads.

  Raises:
    UserError: if the encoder cannot be dilated.
  """
  backbone = encoders.trainable(encoder)
  if not hasattr(backbone, 'output_stride'):
    raise UserError(f'Segmentation needs maps of stride {OUTPUT_STRIDE}, and {encoder.name} cannot give '
                    f'them: {type(backbone).__name__} has no field output_stride.')
  backbone = backbone.clone(output_stride=OUTPUT_STRIDE)
  model = DeepLabV3(backbone, settings.num_classes, settings.rates, settings.channels)

  def heads(key: jax.Array) -> Any:
    # Without the backbone's, which would be drawn for nothing.
    variables = model.init(key, jnp.zeros((1, *settings.crop, 3)))
    return {name: {layer: leaves for layer, leaves in part.items() if layer != 'backbone'}
            for name, part in variables.items()}

  copied = jax.tree.map(jnp.copy, encoder.variables)
  variables = {name: {**part, 'backbone': copied.get(name, {})}
               for name, part in jax.jit(heads)(jax.random.key(seed)).items()}
  return model, jax.device_put(variables, replicated(mesh))


def train(model: DeepLabV3, variables: Any, pairs: masks.Pairs, settings: Segmentation, spec: Views,
          seed: int, session: Session, saved: tuning.Saved | None = None) -> Any:
  """Trains all layers, with batch norm over the global batch.

  Args:
    model, variables: from `build`.
    pairs: images and masks.
    settings: the training settings.
    spec: gives the channel normalisation.
    seed: seed of the image order, the crops and dropout.
    session: session of the run.
    saved: where to save the state at every report and to resume from; None to save nothing.

  Returns:
    The trained variables.

  Raises:
    UserError: if the loss diverges, a mask is invalid, or too many images cannot be decoded.
  """
  mesh = session.mesh
  crops = mask_pipeline.MaskCrops(settings.crop, settings.scale, settings.short_side, _fill(spec))
  step = jax.jit(functools.partial(_step, model=model, settings=settings, spec=spec, seed=seed),
                 donate_argnums=0, out_shardings=replicated(mesh))

  def report(state: TrainState, done: int, figures: Figures) -> None:
    del state
    session.log(f'iteration {done}/{settings.iterations}  loss {figures["loss"]:.4g}')

  phase = Phase(
    name=' of the segmentation', step=step, last_step=settings.iterations, batch_size=settings.batch_size,
    batches=lambda first: mask_pipeline.train_batches(
      pairs, settings.label_table(), crops, batch_size=settings.batch_size, seed=seed,
      steps=settings.iterations, first_step=first, rows=process_rows(mesh, settings.batch_size)),
    undecodable=pipeline.UndecodableImages(pairs), unread=('id', 'size'), report=report,
    log_every=settings.report_every, save_every=settings.report_every,
    identity={'images': pairs.num_images, 'config.segmentation': tuning.as_json(settings)},
    advice=f'Lower config.segmentation.learning_rate, which is {settings.learning_rate:g}.')
  state = tuning.train(phase, lambda: begin(variables, settings), session, saved)
  return variables_of(state.params, state.batch_stats)


def begin(variables: Any, settings: Segmentation) -> TrainState:
  """The initial state; the backbone is stored as 'encoder', as in every run."""
  params, batch_stats = ({'encoder': part['backbone'], **{name: leaf for name, leaf in part.items()
                                                           if name != 'backbone'}}
                         for part in (variables['params'], variables['batch_stats']))
  return supervised_state(params, batch_stats, _optimizer(settings))


def variables_of(params: Any, batch_stats: Any) -> dict[str, Any]:
  """The variables of DeepLabV3 in a state."""
  return {collection: {'backbone' if name == 'encoder' else name: part for name, part in parts.items()}
          for collection, parts in (('params', params), ('batch_stats', batch_stats))}


def test(model: DeepLabV3, variables: Any, pairs: masks.Pairs, settings: Segmentation, spec: Views,
         batch_size: int, mesh: Mesh, say: protocols.Say) -> tuple[np.ndarray, list[Example]]:
  """Predicts every whole image at a single scale and counts pixels at the size of its mask.

  Predictions for resized images are resized back by nearest neighbour.

  Args:
    model, variables, pairs, settings, spec: as for `train`.
    batch_size: images predicted at a time, over all devices.
    mesh: the mesh.
    say: prints a line.

  Returns:
    Pixels by true and predicted class, int64 [C, C], over all processes; up to six of this process's images.

  Raises:
    UserError: if a mask is invalid, or too many images cannot be decoded.
  """
  predict = jax.jit(functools.partial(_predict, model=model, spec=spec), out_shardings=batch_sharding(mesh))
  rows = process_rows(mesh, batch_size)
  pictured = _spread_over(pairs.num_images, batch_size, rows)
  confusion = np.zeros((settings.num_classes,) * 2, np.int64)
  undecodable, examples = pipeline.UndecodableImages(pairs), []
  for batch in mask_pipeline.eval_batches(pairs, settings.label_table(), canvas=settings.test_size,
                                          short_side=settings.short_side, fill=_fill(spec),
                                          batch_size=batch_size, rows=rows):
    undecodable.add(batch)
    predictions = _rows(predict(variables, to_global(batch['image'], mesh)))
    for i in np.flatnonzero(batch['valid']):
      (height, width), truth = batch['size'][i], batch['mask'][i]
      prediction = predictions[i, :height, :width]
      confusion += count_pixels(truth, _resized(prediction, truth.shape), settings.num_classes)
      if batch['id'][i] in pictured:
        image = batch['image'][i, :height, :width].copy()
        examples.append(Example(image, _resized(truth, (height, width)), prediction))
  undecodable.check()
  if report := undecodable.report():
    say(report)
  return _over_processes(confusion), examples


def count_pixels(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
  """Counts pixels by true (row) and predicted (column) class, except void ones.

  Args:
    truth: classes or `masks.VOID`, uint8 [h, w].
    prediction: classes, uint8 [h, w].
    num_classes: C.

  Returns:
    int64 [C, C].
  """
  known = truth != masks.VOID
  cells = truth[known].astype(np.int64) * num_classes + prediction[known]
  return np.bincount(cells, minlength=num_classes ** 2).reshape(num_classes, num_classes)


def scores(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
  """Intersection over union of each class, IoU_c = n_cc / (Σ_j n_cj + Σ_i n_ic − n_cc), and its mean.

  Args:
    confusion: from `count_pixels`, [C, C].
    class_names: [C].

  Returns:
    'miou', the mean over the classes present in the truth or the prediction, 'pixel_accuracy', and 'iou' by
    class name, None for a class present in neither.
  """
  hits = np.diag(confusion)
  union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
  iou = hits / np.maximum(union, 1)
  return {'miou': float(iou[union > 0].mean()) if union.any() else 0.0,
          'pixel_accuracy': float(hits.sum() / max(confusion.sum(), 1)),
          'iou': {name: float(share) if seen else None
                  for name, share, seen in zip(class_names, iou, union > 0, strict=True)}}


def pixel_loss(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean cross entropy over all non-void pixels of the batch.

  Args:
    logits: float32 [B, H, W, C].
    mask: classes or `masks.VOID`, uint8 [B, H, W].

  Returns:
    float32 [].
  """
  known = mask != masks.VOID
  labels = jnp.where(known, mask, 0).astype(jnp.int32)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return jnp.sum(losses, where=known) / jnp.maximum(jnp.sum(known), 1).astype(jnp.float32)


def _step(state, batch, *, model, settings, spec, seed):
  step = state.step
  images = augment.normalise(batch['image'], spec)
  dropout = jax.random.fold_in(jax.random.key(seed), step)

  def loss(params):
    (logits, auxiliary), changed = model.apply(
      variables_of(params, state.batch_stats), images, 'batch', batch['valid'], auxiliary=True,
      mutable=['batch_stats'], rngs={'dropout': dropout})
    total = pixel_loss(logits, batch['mask'])
    total += settings.auxiliary_weight * pixel_loss(auxiliary, batch['mask'])
    batch_stats = dict(changed['batch_stats'])
    return total, {'encoder': batch_stats.pop('backbone', {}), **batch_stats}

  (value, batch_stats), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
  rate = optax.polynomial_schedule(settings.learning_rate, 0.0, settings.power, settings.iterations)(step)
  updates, momentum = _optimizer(settings).update(gradients, state.opt_state, state.params, lr=rate)
  state = state.replace(step=step + 1, updates=step + 1, params=optax.apply_updates(state.params, updates),
                        batch_stats=batch_stats, opt_state=momentum)
  return state, {'loss': value}, {}


def _optimizer(settings):
  return sgd(settings.weight_decay, settings.momentum)


def _predict(variables, images, *, model, spec):
  return jnp.argmax(model.apply(variables, augment.normalise(images, spec)), axis=-1).astype(jnp.uint8)


def _fill(spec):
  """The mean colour, which normalises to about zero."""
  red, green, blue = (round(255 * mean) for mean in spec.mean)
  return red, green, blue


def _spread_over(num_images, batch_size, rows):
  """Up to six ids, spread evenly over the images that this process reads."""
  mine = np.flatnonzero(np.isin(np.arange(num_images) % batch_size, rows))
  places = np.linspace(0, len(mine) - 1, min(_PICTURED, len(mine))).astype(int)
  return set(mine[places].tolist())


def _rows(array):
  """This process's rows of an array sharded along its first axis, in order."""
  shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
  return np.concatenate([np.asarray(shard.data) for shard in shards])


def _resized(classes, size):
  height, width = size
  return np.asarray(Image.fromarray(classes).resize((int(width), int(height)), Image.Resampling.NEAREST))


def _over_processes(confusion):
  # As bytes, because a gather would cast the 64-bit counts to 32 bits.
  gathered = multihost_utils.process_allgather(np.ascontiguousarray(confusion).view(np.uint8))
  return np.asarray(gathered).view(np.int64).reshape(-1, *confusion.shape).sum(axis=0)
