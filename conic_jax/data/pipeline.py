"""From a source to batches on the host: reads by id, crops and resizes in tf.data, and prefetches."""
import atexit
import contextlib
import functools
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from conic_jax.data import crops, decode, parallel
from conic_jax.data.lazy_tensorflow import tf
from conic_jax.data.sampler import Sampler
from conic_jax.data.sources import Source
from conic_jax.errors import UserError
from conic_jax.permutation import shuffled
from conic_jax.terminal import printable
from conic_jax.views import Views

_CHUNK = 16  # Images decoded by one call of the graph: 16 hide the cost of guarding against errors.
_READERS = 4  # Batches whose bytes are read at the same time.
_TRAIN_ANTIALIAS = 2.0  # Up to this factor bilinear interpolation still weighs every pixel, at half the cost.
_REJECTED_SHARE, _REJECTED_COUNT, _LISTED = 0.01, 10, 20
_MEASURED = 64  # Images whose size is looked at before training.


def train_batches(source: Source, groups: tuple[Views, ...], sampler: Sampler, *, start_step: int,
                  rows: np.ndarray, threads: int = 0, prefetch: int = 2,
                  antialias_above: float = _TRAIN_ANTIALIAS) -> Generator[dict, None, None]:
  """Endless batches of random views, starting at `start_step`.

  The images of a batch depend on the sampler and the step; the crops and flips of an image depend on
  (seed, round, id, view) only, not on the batch, the host or the number of threads.

  Args:
    source: the images.
    groups: the groups of views; an image is read and decoded once for all of them.
    sampler: chooses the images of each batch; its seed, in [0, 2^32), is that of the crops and flips too.
    start_step: number of the first batch.
    rows: positions in the global batch that this process reads, [b].
    threads: decoding threads, 0 for one per core.
    prefetch: batches to prefetch.
    antialias_above: bilinear views shrunk by more than this factor are antialiased.

  Yields:
    'views' a tuple of uint8 [b, count, size, size, 3], 'id' int32 [b], 'valid' bool [b],
    'crop' float32 [b, V, 4] (y0, x0, y1, x1 as fractions), 'flip' bool [b, V], not yet applied,
    'label' int32 [b], -1 for none. Undecodable images are zeros with valid False.
  """
  def read(step):
    ids, round_number = sampler.batch_ids(step)[rows], step // sampler.steps_per_round
    return _read(source, ids,
                 lambda shapes: crops.random_views(groups, shapes, ids, sampler.seed, round_number))

  forms = tuple((group.count, group.size, group.interpolation) for group in groups)
  steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
  return _batches(steps, read, forms, len(rows), threads, prefetch, antialias_above)


def whole_pass_batches(source: Source, groups: tuple[Views, ...], *, batch_size: int, seed: int,
                       epoch: int, start_step: int, rows: np.ndarray) -> Generator[dict, None, None]:
  """Every image once, in the shuffled order of an epoch and with that epoch's random views.

  Args:
    source, groups, rows: as for `train_batches`.
    batch_size: images in the global batch.
    seed: seed of the run, in [0, 2^32).
    epoch: determines the order and the views; in [0, 2^32).
    start_step: number of the first batch.

  Yields:
    The fields of `train_batches`. The last batch is padded with zeros: id -1, label -1, valid False.
  """
  def read(step):
    positions = step * batch_size + np.asarray(rows)
    ids = np.full(len(positions), -1, np.int64)
    inside = positions < source.num_images
    ids[inside] = shuffled(positions[inside], source.num_images, seed, epoch)
    return _read(source, ids, lambda shapes: crops.random_views(groups, shapes, ids, seed, epoch))

  forms = tuple((group.count, group.size, group.interpolation) for group in groups)
  steps = tf.data.Dataset.range(start_step, -(-source.num_images // batch_size))
  return _batches(steps, read, forms, len(rows))


def eval_batches(source: Source, *, size: int, resize: int, batch_size: int,
                 rows: np.ndarray) -> Generator[dict, None, None]:
  """Every image once, in order of id: short side resized to `resize`, then centre crop of `size`.

  Args:
    source: the images.
    size: side of the views.
    resize: length of the short side; 0 or `size` gives the whole central square.
    batch_size: images in the global batch.
    rows: positions in the global batch that this process reads, [b].

  Yields:
    The fields of `train_batches`, 'views' a tuple of one uint8 [b, 1, size, size, 3], nothing flipped.
    The last batch is padded with zeros: id -1, label -1, valid False.
  """
  def read(step):
    ids = step * batch_size + np.asarray(rows)
    ids = np.where(ids < source.num_images, ids, -1)
    return _read(source, ids, lambda shapes: (_central(shapes, size, resize), np.zeros((len(ids), 1), bool)))

  steps = tf.data.Dataset.range(-(-source.num_images // batch_size))
  return _batches(steps, read, ((1, size, decode.CENTRAL),), len(rows))


def _central(shapes, size, resize):
  """The boxes of `decode.CENTRAL` views, float32 [b, 1, 8]."""
  boxes = crops.central_views(shapes, size, resize)
  return np.concatenate([crops.surroundings(boxes, shapes, size), boxes], axis=1)[:, None].astype(np.float32)


def check_views(source: Source, groups: tuple[Views, ...]) -> None:
  """Checks before training that overlapping crops exist for images of these sizes.

  Args:
    source: the images; up to 64 of them are read if views must overlap, none otherwise.
    groups: the groups of views.

  Raises:
    UserError: see `crops.check_overlap`.
  """
  if any(group.overlap != 0 for group in groups):
    crops.check_overlap(groups, _some_shapes(source))


class Named(Protocol):
  """A collection of images with human-readable names."""
  @property
  def num_images(self) -> int: ...
  def name(self, id: int) -> str: ...


class UndecodableImages:
  """The images of a source that could not be decoded, over all processes.

  Args:
    source: the images.
    listing: a file that names them all, one a line, those of earlier starts too; None for none.
  """

  def __init__(self, source: Named, listing: Path | None = None):
    self._source, self._listing = source, listing
    self._ids: set[int] = set()
    self._listed_ids = 0

  def add(self, batch: dict) -> None:
    """Records the undecodable images in this process's rows of a batch."""
    ids = np.asarray(batch['id'])[~np.asarray(batch['valid'])]
    self._ids.update(ids[ids >= 0].tolist())

  def check(self) -> None:
    """Gathers undecodable images from all processes; stops the run if there are too many.

    Those that the user has removed since do not count.

    Raises:
      UserError: if more than 1% of all images failed, and at least ten or half of them.
    """
    self._share()
    self._write()
    removed = getattr(self._source, 'absent', frozenset())
    failed, total = len(self._ids - removed), self._source.num_images
    if failed > _REJECTED_SHARE * total and failed >= min(_REJECTED_COUNT, (total + 1) // 2):
      raise UserError(f'{failed} of {total} images cannot be decoded: mend or remove these files '
                      f'and start again: {self._listed()}.')

  def report(self) -> str | None:
    """A sentence with the number and names of the undecodable images; None if there are none."""
    if not self._ids:
      return None
    return f'{len(self._ids)} images could not be decoded and were left out: {self._listed()}.'

  def names(self) -> list[str]:
    """Names of the undecodable images seen so far, in order of id."""
    return [self._source.name(i) for i in sorted(self._ids)]

  def _listed(self):
    ids = sorted(self._ids)
    names = ', '.join(self._source.name(i) for i in ids[:_LISTED])
    more = f' and {len(ids) - _LISTED} more' if len(ids) > _LISTED else ''
    return names + more + (f' (all in {self._listing})' if self._listing and self._listing.exists() else '')

  def _write(self):
    """Adds to the listing what it lacks; a disk that is full stops no training."""
    if self._listing is None or len(self._ids) == self._listed_ids or jax.process_index():
      return
    with contextlib.suppress(OSError):
      before = self._listing.read_text().splitlines() if self._listing.exists() else []
      names = [printable(name) for name in self.names()]
      if new := sorted(set(names) - set(before)):
        temporary = self._listing.with_suffix('.tmp')
        temporary.write_text(''.join(f'{name}\n' for name in (*before, *new)))
        temporary.replace(self._listing)
      self._listed_ids = len(self._ids)

  def _share(self):
    if jax.process_count() == 1:
      return
    most = multihost_utils.process_allgather(np.int64(len(self._ids))).max()
    mine = np.full(int(most), -1, np.int64)
    mine[:len(self._ids)] = sorted(self._ids)
    everyones = np.unique(multihost_utils.process_allgather(mine))
    self._ids.update(everyones[everyones >= 0].tolist())


def _some_shapes(source):
  """Height and width of images spread evenly over the source, int [n, 2]; skips undecodable ones."""
  ids = np.arange(0, source.num_images, max(1, -(-source.num_images // _MEASURED)))
  encoded, _ = source.read(ids)
  prepared = parallel.map_blocks(decode.prepare, encoded)
  return np.array([shape for image, *shape in prepared if image], np.int64).reshape(-1, 2)


def _read(source, ids, draw):
  """Reads the images of `ids` (id -1 is padding); `draw` gives boxes and flips from their sizes [b, 2].

  Returns:
    The input of `_batches`: bytes, boxes, id, label, crop, flip.
  """
  present = np.flatnonzero(ids >= 0)
  data = np.full(len(ids), b'', object)
  shapes = np.ones((len(ids), 2), np.int64)
  labels = np.full(len(ids), -1, np.int32)
  encoded, labels[present] = source.read(ids[present])
  for i, (image, height, width) in zip(present, parallel.map_blocks(decode.prepare, encoded)):
    if image:
      data[i], shapes[i] = image, (height, width)
  boxes, flips = draw(shapes)
  return [data, boxes, ids.astype(np.int32), labels, crops.fractions(boxes[..., -4:], shapes), flips]


def _batches(steps: tf.data.Dataset, read: Callable[[int], list],
             groups: tuple[tuple[int, int, str], ...], rows: int, threads: int = 0, prefetch: int = 2,
             antialias_above: float = _TRAIN_ANTIALIAS) -> Generator[dict, None, None]:
  """Runs `read` and the graph over `steps` in threads, and yields full batches in order."""
  threads = threads or parallel.cores()
  chunk = max(size for size in range(1, _CHUNK + 1) if rows % size == 0)
  views = sum(count for count, *_ in groups)
  box_type, box_fields = decode.box_type(groups)
  dtypes = (tf.string, box_type, tf.int32, tf.int32, tf.float32, tf.bool)
  shapes = ((), (views, box_fields), (), (), (views, 4), (views,))

  # AutoGraph would rewrite their Python first, which takes longer than tracing them.
  @tf.autograph.experimental.do_not_convert
  def read_chunks(step):
    fields = tf.numpy_function(read, [step], dtypes)
    return tuple(tf.reshape(field, (rows // chunk, chunk, *shape))
                 for field, shape in zip(fields, shapes))

  decoder = _decoder(groups, antialias_above)

  @tf.autograph.experimental.do_not_convert
  def decode_fields(data, boxes, ids, labels, crop, flips):
    pixels, decoded = decoder(data, boxes)
    return {'views': pixels, 'id': ids, 'valid': decoded, 'crop': crop, 'flip': flips,
            'label': labels}

  dataset = steps.map(read_chunks, num_parallel_calls=_READERS).unbatch()
  dataset = dataset.map(decode_fields, num_parallel_calls=threads)
  dataset = dataset.batch(rows // chunk, num_parallel_calls=prefetch).prefetch(prefetch)
  options = tf.data.Options()
  options.deterministic = True
  options.autotune.enabled = False
  options.threading.private_threadpool_size = threads
  for batch in _closed_at_exit(dataset.with_options(options).as_numpy_iterator()):
    yield tf.nest.map_structure(lambda field: field.reshape(rows, *field.shape[2:]), batch)


@functools.lru_cache
def _decoder(groups: tuple[tuple[int, int, str], ...], antialias_above: float
             ) -> Callable[[tf.Tensor, tf.Tensor], tuple[tuple[tf.Tensor, ...], tf.Tensor]]:
  """`decode.decode_chunk` for these views, traced once for all evaluations of a run."""
  return tf.function(lambda data, boxes: decode.decode_chunk(data, boxes, groups, antialias_above),
                     autograph=False)


def _closed_at_exit(iterator: Iterator[Any]) -> Generator[Any, None, None]:
  """Yields from a TensorFlow iterator and releases it before the interpreter ends.

  TensorFlow waits for the reads in progress when it releases an iterator. Later these could not finish,
  because they need the interpreter, and the process would hang.
  """
  held = [iterator]
  del iterator
  unregister = atexit.unregister  # The module is gone when the interpreter itself releases a generator.
  atexit.register(held.clear)
  try:
    while (batch := next(held[0], None)) is not None:
      yield batch
  finally:
    unregister(held.clear)
    held.clear()
