"""InsCon: MoCo v2 with one more head for images of several instances and one for cells of an image.

L = L_single + L_multi + L_cell, the sum of Eq. 1, 2 and 3, each
    −log [Σᵢ e^{qᵢ·kᵢ/τ} / (Σᵢ e^{qᵢ·kᵢ/τ} + Σᵢ Σ₋ e^{qᵢ·k₋/τ})]

Single: a query and its key. Multi: a mosaic of four views of different images; each quadrant of its map is a
query for the key of its own image. Cell: the overlap of the two crops, divided into 3×3 cells in both maps.

Source: "InsCon: Instance Consistency Feature Representation via Self-Supervised Learning" (Yang et al. 2022).
"""
import dataclasses
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax import losses, models
from conic_jax.errors import UserError
from conic_jax.memories.key_queue import KeyQueue, Queue
from conic_jax.methods.method import Aux, check_positive
from conic_jax.methods.moco import MoCo
from conic_jax.methods.network import pair_metrics
from conic_jax.models import roi

# Views of a mosaic, in the order upper left, upper right, lower left, lower right.
_QUADRANTS = 4
# The stage of the network that a position of Table 9 means, counted from the end.
POSITIONS = {'res5': 0, 'res4': 1}


class InsCon(MoCo):
  """The method; see the module.

  The quadrants are a third view of each image at half the side, cut for the mosaics alone. The four images of
  a mosaic are consecutive in the batch: its order is random, and no image moves as long as the number of
  images per device is a multiple of four. Every image is in one mosaic per step. The mosaics have their own
  head; the keys that their quadrants are matched with, and the queue, are the single head's.
  """
  undivided = 'its mosaics join four images of the batch in one loss'

  def __init__(self, config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype):
    super().__init__(config, num_instances, mesh, dtype)
    self.chance = 'loss_single', math.log1p(config.queue.size)
    self.has_multi, self.cell = config.multi.enabled, config.cell
    if self.cell.enabled:
      cell_keys = config.batch_size * config.cell.size ** 2
      self.cell_queue = KeyQueue(config.cell.queue, config.cell.features, mesh, config.queue.split,
                                 'config.cell.queue', cell_keys)
      self.memories = {**self.memories, 'cell_queue': self.cell_queue}
    head = config.head
    self.multi_head = models.MLP(head.hidden, head.features, dtype=dtype)
    self.cell_head = models.MLP(config.cell.hidden, config.cell.features, dtype=dtype)
    if self.has_multi:
      self.views += (dataclasses.replace(self.views[0], count=1, size=self.views[0].size // 2, overlap=0.0),)
    self.shapes = map_shapes(self.network.encoder, config.views.size)
    last = len(models.stage_names(self.shapes))
    self.last_stage, self.cell_stage = f'stage{last}', f'stage{last - POSITIONS[config.cell.position]}'

  # ---- The heads -----------------------------------------------------------------------------------

  def multi_queries(self, params: Any, batch_stats: Any, batch: dict[str, Any]) -> tuple[jax.Array, Any]:
    """The quadrant of each image in its mosaic, float32 [B, D] of unit norm, and the statistics after."""
    whole = mosaics(batch['views'][1][:, 0])
    maps, batch_stats = self.network.maps(params, batch_stats, whole, of_mosaics(batch['valid']), self.mode)
    quadrants = roi.adaptive_pool(maps[self.last_stage], 2)
    features = self.multi_head.apply({'params': params['multi_head']}, quadrants)
    return losses.normalise(features.reshape(len(batch['id']), -1)), batch_stats

  def multi_loss(self, queries: jax.Array, keys: jax.Array, queue: Queue, batch: dict[str, Any]
                 ) -> jax.Array:
    """Eq. 2, [], the mean over mosaics whose images are all valid."""
    positives, negatives = jnp.sum(queries * keys, axis=1), self.cosines(queue, queries, batch['id'])
    grouped = lambda cosines: cosines.reshape(-1, _QUADRANTS, *cosines.shape[1:]) / self.temperature
    loss = losses.contrast(grouped(positives), grouped(negatives))
    return losses.masked_mean(loss, of_mosaics(batch['valid']))

  def cells(self, params: Any, maps: Any, boxes: jax.Array, flip: jax.Array) -> jax.Array:
    """Cells of a view's part of the overlap, oriented as in the source image.

    Args:
      params: has 'cell_head'.
      maps: the stages of the view.
      boxes: float32 [B, 4], the overlap in fractions of the view; flip: bool [B].

    Returns:
      float32 [B, size², D] of unit norm.
    """
    stage = maps[self.cell_stage]
    pooled = roi.precise_pool(stage, boxes * stage.shape[1], self.cell.size, self.cell.outside)
    features = self.cell_head.apply({'params': params['cell_head']}, roi.unflip_cells(pooled, flip))
    return losses.normalise(features.reshape(len(features), -1, self.cell.features))

  def cell_loss(self, queries: jax.Array, keys: jax.Array, queue: Queue, batch: dict[str, Any]
                ) -> jax.Array:
    """Eq. 3, [], the mean over valid images."""
    images, cells, dim = queries.shape
    positives = jnp.sum(queries * keys, axis=2)
    negatives = self.cosines(queue, queries.reshape(-1, dim), jnp.repeat(batch['id'], cells))
    negatives = negatives.reshape(images, cells, -1)
    loss = losses.contrast(positives / self.cell.temperature, negatives / self.cell.temperature)
    return losses.masked_mean(loss, batch['valid'])

  # ---- The contract --------------------------------------------------------------------------------

  def init(self, rng, batch):
    own_rng, multi_rng, cell_rng, queue_rng = jax.random.split(rng, 4)
    params, batch_stats, states = super().init(own_rng, batch)
    if self.has_multi:
      features = jnp.zeros((1, self.network.encoder.num_features))
      params = {**params, 'multi_head': self.multi_head.init(multi_rng, features)['params']}
    if self.cell.enabled:
      stage = self.shapes[self.cell_stage]
      cell_head = self.cell_head.init(cell_rng, jnp.zeros((1, stage.shape[-1])))
      params = {**params, 'cell_head': cell_head['params']}
      key = {**states['key'], 'params': {**states['key']['params'], 'cell_head': params['cell_head']}}
      states = {**states, 'key': key, 'cell_queue': self.cell_queue.init(queue_rng)}
    return params, batch_stats, states

  def loss(self, params, batch_stats, memories, batch, rng):
    valid, key_encoder = batch['valid'], memories['key']
    pairs = self.pairs(params, batch_stats, key_encoder, batch, rng)
    batch_stats, losses_by_head = pairs.batch_stats, {}
    losses_by_head['loss_single'], metrics = self.contrast(
      pairs.queries, pairs.keys, memories['queue'], batch)
    seen = {'key': pairs.key_stats, 'queue': {'keys': pairs.keys, 'ids': batch['id'], 'valid': valid}}
    if self.has_multi:
      quadrants, batch_stats = self.multi_queries(params, batch_stats, batch)
      losses_by_head['loss_multi'] = self.multi_loss(quadrants, pairs.keys, memories['queue'], batch)
    if self.cell.enabled:
      flip, boxes = batch['flip'], roi.overlap_boxes(batch['crop'][:, :2], batch['flip'][:, :2])
      query_cells = self.cells(params, pairs.query_maps, boxes[:, 0], flip[:, 0])
      key_cells = jax.lax.stop_gradient(
        self.cells(key_encoder['params'], pairs.key_maps, boxes[:, 1], flip[:, 1]))
      losses_by_head['loss_cell'] = self.cell_loss(query_cells, key_cells, memories['cell_queue'], batch)
      repeated = lambda values: jnp.repeat(values, key_cells.shape[1])
      seen['cell_queue'] = {'keys': key_cells.reshape(-1, self.cell.features),
                            'ids': repeated(batch['id']), 'valid': repeated(valid)}
    metrics = {**losses_by_head, **metrics, **pair_metrics(pairs.queries, pairs.keys, valid)}
    return sum(losses_by_head.values(), jnp.zeros(())), Aux(batch_stats, metrics, seen)


def mosaics(views: jax.Array) -> jax.Array:
  """Mosaics of four consecutive views: upper left, upper right, lower left, lower right.

  Args:
    views: [B, h, w, C], B a multiple of 4.

  Returns:
    [B / 4, 2h, 2w, C].
  """
  images, height, width, channels = views.shape
  tiles = views.reshape(images // _QUADRANTS, 2, 2, height, width, channels)
  return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(images // _QUADRANTS, 2 * height, 2 * width, channels)


def of_mosaics(valid: jax.Array) -> jax.Array:
  """Whether all images of each mosaic are valid: bool [B / 4] of bool [B]."""
  chex.assert_rank(valid, 1)
  return valid.reshape(-1, _QUADRANTS).all(axis=1)


def map_shapes(encoder: models.EncoderModule, size: int) -> Any:
  """Shapes of the maps of one view of this side, by stage."""
  view = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(
    lambda image: encoder.init_with_output(jax.random.key(0), image, stages=True)[0], view)


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> InsCon:
  """Creates the method from `config`.

  Raises:
    UserError: if mosaics do not divide the batch or the view, or a map or a queue is too small for the cells.
  """
  size, batch_size, cell = config.views.size, config.batch_size, config.cell
  if cell.position not in POSITIONS:
    raise UserError(f"config.cell.position is '{cell.position}'; available: {', '.join(POSITIONS)}.")
  if config.multi.enabled and (batch_size % _QUADRANTS or size % 2):
    raise UserError(f'Mosaics of four half-size views need config.batch_size, {batch_size}, to be a multiple '
                    f'of 4 and config.views.size, {size}, of 2; or set config.multi.enabled=False.')
  if config.multi.enabled and config.batch_norm.groups:
    _check_mosaic_groups(config.batch_norm.groups, batch_size)
  if config.head.norm:
    raise UserError('config.head.norm is True: InsCon has no batch norm in its heads; set it to False.')
  if cell.enabled:
    _check_cells(config)
  method = InsCon(config, num_instances, mesh, dtype)
  _check_maps(method, config)
  return method


def _check_cells(config: Any) -> None:
  """Raises a `UserError` for impossible cell settings."""
  cell = config.cell
  check_positive(cell.temperature, 'config.cell.temperature')
  check_positive(cell.size, 'config.cell.size')
  if cell.outside not in roi.OUTSIDE:
    raise UserError(f"config.cell.outside is '{cell.outside}'; available: {', '.join(roi.OUTSIDE)}.")
  if config.views.overlap <= 0:
    raise UserError('config.views.overlap is 0: the cells are cut from the overlap of two crops; set it to '
                    'the least share of the smaller crop that they have in common, above 0.')


def _check_mosaic_groups(groups: int, batch_size: int) -> None:
  """Raises a `UserError` if a batch's mosaics cannot be divided into batch-norm groups."""
  if batch_size // _QUADRANTS % groups:
    raise UserError(f'The {batch_size // _QUADRANTS} mosaics of a batch of {batch_size} do not divide into '
                    f'config.batch_norm.groups {groups}: set config.batch_size to a multiple of '
                    f'{_QUADRANTS * groups}, or the groups lower.')


def _check_maps(method: InsCon, config: Any) -> None:
  """Raises a `UserError` if a feature map has fewer pixels per side than cells."""
  stages = len(models.stage_names(method.shapes))
  if not stages:
    raise UserError(f'InsCon needs the maps of an encoder, and {config.encoder.name} returns no stages.')
  if config.cell.enabled and stages <= POSITIONS[config.cell.position]:
    raise UserError(f"config.cell.position is '{config.cell.position}' and the network has {stages} stage: "
                    'set it to res5, or give config.encoder.blocks more stages.')
  wanted = [(method.cell_stage, config.cell.size)] if config.cell.enabled else []
  wanted += [(method.last_stage, 2)] if method.has_multi else []
  for name, cells in wanted:
    side = method.shapes[name].shape[1]
    if side < cells:
      raise UserError(f'The map of {name} is {side}×{side} for views of {config.views.size} pixels, too '
                      f'small for {cells}×{cells} cells: set config.views.size larger, or make the network '
                      'shrink it less by config.encoder.output_stride or config.encoder.stem.')
