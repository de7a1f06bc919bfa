"""Draws a method's input: images, crops and augmented views; for InsCon also cells and mosaics.

  python -m conic_jax.preview --config=configs/conic.py:photos --out=views.png --images=8

The images are the first of the first batch, processed by the training's own pipeline and augmentation. Cells
with the same number and colour show the same part of the image; they are computed by the loss's functions.
"""
import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from conic_jax import command_line, methods, visualise
from conic_jax.buckets.bucket import is_url
from conic_jax.buckets.outputs import output
from conic_jax.data import decode, pipeline, sources
from conic_jax.data.sampler import Sampler
from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.hardware.processes import find_devices
from conic_jax.methods import Method
from conic_jax.methods.inscon import InsCon, mosaics
from conic_jax.models import roi
from conic_jax.pretraining import settings, train_step
from conic_jax.terminal import print_line
from conic_jax.views import Views
from conic_jax.visualise import Column

_USAGE = ('usage: python -m conic_jax.preview --config=FILE[:PRESET] [--out=views.png] [--images=8] '
          '[--config.FIELD=VALUE …].')


def first_batch(config: Any, source: sources.Source, method: Method, images: int) -> dict[str, Any]:
  """The first images of the first batch, augmented as in training: the input of `Method.loss`."""
  sampler = Sampler(source.num_images, config.batch_size, config.seed, **config.sampler)
  batch = next(pipeline.train_batches(source, method.views, sampler, start_step=0, rows=np.arange(images)))
  batch.pop('label')
  augment = jax.jit(train_step.augment_batch, static_argnums=(0, 2))
  return augment(method.views, batch, config.seed, jnp.int32(0))


def columns(source: sources.Source, method: Method, batch: dict[str, Any]) -> list[Column]:
  """The columns of the picture: the images, then each view; with cells if the method has them."""
  encoded, _ = source.read(np.asarray(batch['id']))
  drawn = [Column('image', [decoded(data) for data in encoded])]
  for group, views in zip(method.views, batch['views'], strict=True):
    drawn += [Column(f'view {len(drawn) + i} ({group.size}×{group.size})', list(pixels(views[:, i], group)))
              for i in range(group.count)]
  if isinstance(method, InsCon) and method.cell.enabled:
    crop, flip = np.asarray(batch['crop'][:, :2]), np.asarray(batch['flip'][:, :2])
    cells = image_cells(crop, method.cell.size), *view_cells(crop, flip, method.cell.size)
    drawn[:3] = [dataclasses.replace(column, cells=each) for column, each in zip(drawn, cells)]
  return drawn


def drawn_mosaics(method: Method, batch: dict[str, Any]) -> np.ndarray | None:
  """The mosaics of every four images, uint8 [images // 4, S, S, 3]; None if the method has none."""
  if not (isinstance(method, InsCon) and method.has_multi):
    return None
  views = batch['views'][1][:, 0]
  whole = len(views) // 4 * 4
  return pixels(mosaics(views[:whole]), method.views[1]) if whole else None


def view_cells(crop: np.ndarray, flip: np.ndarray, size: int) -> np.ndarray:
  """The overlap's cells in two views, ordered so that each cell is the same part of the image in both.

  Args:
    crop: y0, x0, y1, x1 as fractions of the image, float32 [n, 2, 4].
    flip: bool [n, 2].
    size: cells per side.

  Returns:
    y0, x0, y1, x1 as fractions of the view as the network sees it, float32 [2, n, size, size, 4].
  """
  boxes = jax.jit(roi.overlap_boxes)(crop, flip)
  return np.stack([jax.jit(roi.unflip_cells)(_grid(boxes[:, view], size), flip[:, view])
                   for view in range(2)])


def image_cells(crop: np.ndarray, size: int) -> np.ndarray:
  """The same cells as fractions of the image, [n, size, size, 4]."""
  start, stop = np.max(crop[..., :2], axis=1), np.min(crop[..., 2:], axis=1)
  return _grid(np.concatenate([start, stop], axis=-1), size)


def pixels(views: jax.Array, spec: Views) -> np.ndarray:
  """Undoes the normalisation: uint8 [..., 3]."""
  values = np.asarray(views) * np.asarray(spec.std) + np.asarray(spec.mean)
  return np.clip(255 * values, 0, 255).round().astype(np.uint8)


def decoded(data: bytes) -> np.ndarray:
  """Decodes a whole image, uint8 [H, W, 3]; a black pixel if it cannot be decoded, like its views."""
  image = decode.decode(data)
  return np.zeros((1, 1, 3), np.uint8) if image is None else image


def _grid(boxes, size):
  """Divides boxes y0, x0, y1, x1 [n, 4] into cells, float32 [n, size, size, 4], row by row."""
  boxes = np.asarray(boxes, np.float32)
  edges = np.arange(size + 1, dtype=np.float32)[:, None] / size
  y, x = (boxes[:, i] + edges * (boxes[:, i + 2] - boxes[:, i]) for i in range(2))
  lows = np.stack(np.broadcast_arrays(y[:-1, None], x[None, :-1]), axis=-1)
  highs = np.stack(np.broadcast_arrays(y[1:, None], x[None, 1:]), axis=-1)
  return np.moveaxis(np.concatenate([lows, highs], axis=-1), 2, 0)


# ---- The command --------------------------------------------------------------------------------


def define_flags(argv: list[str]) -> flags.FlagValues:
  """Defines the command's flags without parsing them."""
  values = flags.FlagValues()
  command_line.define_config(values, argv)
  flags.DEFINE_string('out', 'views.png', 'The picture to write.', flag_values=values)
  flags.DEFINE_integer('images', 8, 'Images of the first batch to draw.', flag_values=values)
  return values


def check_images(images: int, batch_size: int | None) -> None:
  """Raises a `UserError` if a batch has fewer images; `batch_size` may still be open (None)."""
  if images < 1 or (batch_size is not None and images > batch_size):
    raise UserError(f'--images={images}: from 1 to all {batch_size or "images"} of a batch are drawn.')


def run(values: flags.FlagValues) -> None:
  """Draws the picture that the flags ask for."""
  config, out = values.config, values.out
  if config.task != 'pretrain':
    raise UserError(f"config.task is '{config.task}': views are drawn of a pretraining.")
  settings.check(config)
  if is_url(config.run):  # What the run chose when it began is not looked up in a bucket.
    config.run = ''
  if Path(out).suffix != '.png':
    raise UserError(f'--out={out}: the picture is a PNG; give it a name that ends in .png.')
  check_images(values.images, config.batch_size)
  config, _ = settings.choose_splits(config)
  source = sources.open_source(config.data, config.data.train)
  mesh = meshes.make_mesh(devices=find_devices()[:1])
  config, _ = settings.settle(config, source, False, mesh, say=lambda line: None, timed=False)
  check_images(values.images, config.batch_size)
  method = methods.make(config, source.num_images, mesh, meshes.compute_dtype(config.dtype))
  pipeline.check_views(source, method.views)
  batch = first_batch(config, source, method, values.images)
  names = [source.name(int(id)) for id in batch['id']]
  with output(out, '--out') as written:
    visualise.insist(
      lambda file: visualise.views_picture(columns(source, method, batch), np.asarray(batch['crop']), names,
                                           drawn_mosaics(method, batch), file), written.path, '--out')
  print_line(f'{out}: the first {values.images} images of the first batch, as {config.method} sees them')


def command() -> None:
  """Runs the command and sets its exit code."""
  command_line.run_with_config(run, define_flags(sys.argv), _USAGE)


if __name__ == '__main__':
  command()
