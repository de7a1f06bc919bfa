"""The images to explore, with their features: of a run, of a folder, or of a file of embeddings."""
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from conic_jax.data import kinds, pipeline, sources
from conic_jax.data.given_images import GivenImages
from conic_jax.data.sources import Source, Subset
from conic_jax.errors import UserError
from conic_jax.evals import embeddings, protocols
from conic_jax.evals.encoders import Encoder
from conic_jax.hardware import mesh as meshes
from conic_jax.terminal import print_line, printable

GREY = 16                       # pixels per side of the thumbnails that copies are told by
_AT_A_TIME = 256


@dataclasses.dataclass(frozen=True)
class Collection:
  """Images and their features.

  Attributes:
    vectors: float32 [n, F], finite.
    paths: n printable names, relative to the folder of images where there is one.
    splits: n names of splits, all '' if there is one.
    classes: n names of classes, all '' if there are none.
    total: images that there are; more than n if these are a sample.
    thumbnails: gives central squares uint8 [m, 96, 96, 3] of some of the n.
  """
  vectors: np.ndarray
  paths: list[str]
  splits: list[str]
  classes: list[str]
  total: int
  thumbnails: Callable[[np.ndarray], np.ndarray]


def of_run(encoder: Encoder, most: int, seed: int) -> Collection:
  """The images of a run, of its training and test splits; of more than `most` a sample.

  Raises:
    UserError: if the encoder is of no run, or the images are not there.
  """
  if encoder.pretraining is None:
    raise UserError(f'{encoder.name} is no run, so which images? Give a folder, or a file that embed wrote.')
  data = encoder.pretraining.data
  names = [data.train, *([data.test] if data.test else [])]
  opened = [sources.open_source(data, split) for split in names]
  shares = _shares([source.num_images for source in opened], most)
  parts = [_encoded(encoder, _sample(source, share, seed), data.dir if data.name == 'folder' else '',
                    split if len(names) > 1 else '')
           for source, share, split in zip(opened, shares, names, strict=True)]
  return _joined(parts, sum(source.num_images for source in opened))


def of_folder(encoder: Encoder, images: str, most: int, seed: int) -> Collection:
  """The images of a folder; of more than `most` a sample; raises a `UserError` if there are none."""
  try:
    source = sources.open_path(images)
  except UserError as error:
    raise UserError(f"{str(error).partition(': set config')[0].partition('; set config')[0]}.") from None
  sample = _sample(source, min(most, source.num_images), seed)
  return _joined([_encoded(encoder, sample, kinds.folder_of(images), '')], source.num_images)


def of_file(file: Path, most: int, seed: int) -> Collection:
  """The images of a file that embed wrote; of more than `most` a sample.

  Raises:
    UserError: if it is no such file, or empty.
  """
  metadata, blocks = embeddings.read(file)
  whole = embeddings.joined(list(blocks))
  chosen = _chosen(len(whole.ids), most, seed)
  root = os.path.expanduser(metadata.get('images', ''))
  paths = [whole.paths[row] for row in chosen]
  found = GivenImages([os.path.join(root, path) for path in paths])
  part = Part(whole.vectors[chosen], paths, '', [os.path.dirname(path) for path in paths],
              functools.partial(protocols.thumbnails, found), np.arange(len(paths)))
  return _joined([part], len(whole.ids))


@dataclasses.dataclass(frozen=True)
class Part:
  """The images of one source, with the ids by which `thumbnails` knows them."""
  vectors: np.ndarray
  paths: list[str]
  split: str
  classes: list[str]
  thumbnails: Callable[[np.ndarray], np.ndarray]
  ids: np.ndarray


def _encoded(encoder: Encoder, source: Source, root: str, split: str) -> Part:
  mesh, (size, resize) = meshes.make_mesh(), embeddings.sizes(encoder)
  batch, undecodable = embeddings.IMAGES_OF_DEVICE * mesh.size, pipeline.UndecodableImages(source)
  blocks: Iterator[Any] = embeddings.embed(
    encoder, source, os.path.expanduser(root) or os.curdir, size=size, resize=resize, batch_size=batch,
    mesh=mesh, undecodable=undecodable)
  batches = -(-source.num_images // batch)
  found = list(tqdm(blocks, desc='encoding', total=batches, unit='batch', disable=None))
  if report := undecodable.report():
    print_line(report)
  if not any(len(block.ids) for block in found):
    raise UserError('None of the images can be decoded: mend the files or name another folder.')
  whole = embeddings.joined(found)
  names = source.class_names
  classes = [''] * len(whole.ids)
  if source.num_classes:
    labels = source.labels()[whole.ids]
    classes = [printable(names[label]) if label >= 0 else '' for label in labels]
  paths = whole.paths if root else [printable(source.name(int(id))) for id in whole.ids]
  thumbnails = functools.partial(protocols.thumbnails, source)
  return Part(whole.vectors, paths, split, classes, thumbnails, whole.ids)


def _joined(parts: list[Part], total: int) -> Collection:
  """One collection of the images of all parts whose features are finite."""
  kept = [np.flatnonzero(np.isfinite(part.vectors).all(axis=1)) for part in parts]
  places = [(number, row) for number, rows in enumerate(kept) for row in rows]
  if not places:
    raise UserError('None of the features is finite: the training of this encoder diverged.')

  def thumbnails(chosen: np.ndarray) -> np.ndarray:
    # A source reads many images at once; those of a part are next to each other.
    of_part = itertools.groupby((places[index] for index in chosen), lambda place: place[0])
    return np.concatenate([parts[number].thumbnails(parts[number].ids[[row for _, row in rows]])
                           for number, rows in of_part])

  classes = [parts[number].classes[row] for number, row in places]
  return Collection(
    np.concatenate([part.vectors[rows] for part, rows in zip(parts, kept, strict=True)]),
    [parts[number].paths[row] for number, row in places], [parts[number].split for number, _ in places],
    classes if len(set(classes)) > 1 else [''] * len(classes), total, thumbnails)


def pictures(collection: Collection, tile: int) -> tuple[np.ndarray, np.ndarray]:
  """All thumbnails, once as tiles uint8 [n, tile, tile, 3], once small and grey float32 [n, 16, 16]."""
  count = len(collection.paths)
  tiles, greys = np.zeros((count, tile, tile, 3), np.uint8), np.zeros((count, GREY, GREY), np.float32)
  for start in tqdm(range(0, count, _AT_A_TIME), desc='thumbnails', unit='batch', disable=None):
    rows = np.arange(start, min(start + _AT_A_TIME, count))
    for row, array in zip(rows, collection.thumbnails(rows), strict=True):
      image = Image.fromarray(array)
      tiles[row] = np.asarray(image.resize((tile, tile), Image.Resampling.BICUBIC))
      greys[row] = np.asarray(image.convert('L').resize((GREY, GREY), Image.Resampling.BOX), np.float32)
  return tiles, greys


def _sample(source: Source, count: int, seed: int) -> Source:
  return source if count >= source.num_images else Subset(source, _chosen(source.num_images, count, seed))


def _chosen(total: int, most: int, seed: int) -> np.ndarray:
  """At most `most` of the ids, ascending."""
  if total <= most:
    return np.arange(total)
  return np.sort(np.random.default_rng(seed).choice(total, most, replace=False))


def _shares(counts: list[int], most: int) -> list[int]:
  """How many images of each split to take."""
  total = sum(counts)
  return [count if total <= most else max(1, count * most // total) for count in counts]
