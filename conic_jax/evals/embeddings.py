"""Embedding files: computed batch by batch, written and read in parts, and searched."""
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax.sharding import Mesh

from conic_jax import measures
from conic_jax.data import augment, kinds, pipeline
from conic_jax.data.sources import Source
from conic_jax.errors import UserError
from conic_jax.evals import protocols
from conic_jax.evals.encoders import Encoder
from conic_jax.hardware.mesh import process_rows, replicated, to_global
from conic_jax.terminal import printable
from conic_jax.views import usual_resize

SUFFIXES = ('.parquet', '.npz')
IMAGES_OF_DEVICE = 32  # Encoded at a time where nobody says how many.
_ROWS = 4096  # Minimum rows per row group: tables with small groups are slow to read.


@dataclasses.dataclass(frozen=True)
class Embeddings:
  """Feature vectors of some images.

  Attributes:
    ids: int64 [n], ascending.
    paths: n printable paths relative to the image folder.
    vectors: float32 [n, F].
  """
  ids: np.ndarray
  paths: list[str]
  vectors: np.ndarray


def is_file(images: str) -> bool:
  """Whether what a command takes as images is a file of embeddings, not a tar or a list of images."""
  return os.path.isfile(images) and kinds.kind_of(images) not in ('wds', 'list')


def embed(encoder: Encoder, source: Source, root: str, *, size: int, resize: int, batch_size: int, mesh: Mesh,
          undecodable: pipeline.UndecodableImages) -> Iterator[Embeddings]:
  """Encodes every image of a source, batch by batch, in order of id.

  Args:
    encoder: the encoder; its views give the normalisation.
    source: the images.
    root: the folder that paths are relative to.
    size: side in pixels of the centre crop.
    resize: pixels to resize the short side to before the crop.
    batch_size: images encoded at a time, over all devices.
    mesh: the mesh that a batch is sharded over.
    undecodable: records the undecodable images, which are left out.
  """
  variables = jax.device_put(encoder.variables, replicated(mesh))
  batches = pipeline.eval_batches(source, size=size, resize=resize, batch_size=batch_size,
                                  rows=process_rows(mesh, batch_size))
  for batch in batches:
    undecodable.add(batch)
    images = to_global(batch['views'][0][:, 0], mesh)
    vectors = np.asarray(_encode(variables, images, encode=encoder.encode, spec=encoder.views))
    valid = batch['valid']
    ids = batch['id'][valid].astype(np.int64)
    yield Embeddings(ids, [printable(os.path.relpath(source.name(int(i)), root)) for i in ids],
                     vectors[valid])


def sizes(encoder: Encoder, size: int | None = None) -> tuple[int, int]:
  """Pixels of the crop that is encoded, and of the short side of the image that it is cut from.

  Args:
    encoder: gives both as in its run's own evaluations; a file or a random encoder, 224 of 256.
    size: another crop, whose image has ImageNet's ratio to it.
  """
  settings, own = encoder.pretraining, encoder.views.size
  if settings is not None and 'eval' in settings and size in (None, own):
    return own, protocols.resize_of(settings)
  return size or own, usual_resize(size or own)


def fingerprint(encoder: Encoder) -> str:
  """Fingerprint of an encoder's weights: 16 hexadecimal digits of their SHA-256."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(encoder.variables):  # In order of their names.
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()[:16]


def write(blocks: Iterable[Embeddings], metadata: dict[str, str], out: Path) -> int:
  """Writes embeddings as Parquet, one row group at a time, or as NPZ.

  Args:
    blocks: in order of id.
    metadata: goes into the Parquet schema, or as JSON into the NPZ array 'metadata'.
    out: the file; it gets its name only once it is complete.

  Returns:
    The number of vectors.

  Raises:
    UserError: if there are none, the images cannot be read, or the file cannot be written.
  """
  metadata = {name: printable(value) for name, value in metadata.items()}
  part = out.with_name(f'.{out.name}.part')
  write_part = _write_parquet if out.suffix == '.parquet' else _write_npz
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
      with open(part, 'wb') as file:
        count = write_part(_grouped(_readable(blocks)), metadata, file)
      part.rename(out)
    finally:
      part.unlink(missing_ok=True)
  except OSError as error:
    raise UserError(f'{out} cannot be written ({error}): choose another --out.') from error
  return count


def read(file: Path) -> tuple[dict[str, str], Iterator[Embeddings]]:
  """Reads the metadata and the embeddings of a file that `write` wrote, some rows at a time.

  Raises:
    UserError: if it is any other file, or damaged.
  """
  with _whole(file):
    return (_read_parquet if file.suffix == '.parquet' else _read_npz)(file)


def nearest(query: np.ndarray, blocks: Iterable[Embeddings], k: int) -> tuple[list[str], np.ndarray]:
  """The k images with the highest cosine similarity to a query; ties go to the first.

  Args:
    query: [F].
    blocks: the embeddings to search; one block is held at a time.
    k: number of images, at least 1.

  Returns:
    Their paths, and similarities float32 [at most k], descending.

  Raises:
    UserError: if the vectors and the query differ in width.
  """
  paths, similarities = [], np.zeros(0, np.float32)
  for block in blocks:
    if block.vectors.shape[1] != len(query):
      raise UserError(f'The vectors have {block.vectors.shape[1]} numbers and those of this encoder '
                      f'{len(query)}: name the encoder that they are of.')
    paths = paths + block.paths
    found = measures.unit_rows(block.vectors) @ measures.unit_rows(query)
    similarities = np.concatenate([similarities, found.astype(np.float32)])
    order = np.argsort(-similarities, kind='stable')[:k]
    paths, similarities = [paths[i] for i in order], similarities[order]
  return paths, similarities


@functools.partial(jax.jit, static_argnames=('encode', 'spec'))
def _encode(variables, images, *, encode, spec):
  return encode(variables, augment.normalise(images, spec)).astype(jnp.float32)


@contextlib.contextmanager
def _whole(file):
  """Turns any error of a reader into a `UserError`: the file is damaged or from another program."""
  try:
    yield
  except (OSError, EOFError, AttributeError, LookupError, TypeError, ValueError, zipfile.BadZipFile,
          pa.ArrowException):
    raise UserError(f'{file} is no file of embeddings, or it is damaged: write it with '
                    '`python -m conic_jax.embed`.') from None


def _readable(blocks):
  try:
    yield from blocks
  except OSError as error:
    raise UserError(f'The images cannot be read ({error}): mend the folder or name another.') from error


def _grouped(blocks):
  """The same rows in blocks of at least `_ROWS`, except for the last; no block is empty."""
  waiting, rows = [], 0
  for block in blocks:
    waiting.append(block)
    rows += len(block.ids)
    if rows >= _ROWS:
      yield joined(waiting)
      waiting, rows = [], 0
  if rows:
    yield joined(waiting)


def joined(blocks: list[Embeddings]) -> Embeddings:
  """One block of several, at least one."""
  return Embeddings(np.concatenate([block.ids for block in blocks]),
                    [path for block in blocks for path in block.paths],
                    np.concatenate([block.vectors for block in blocks]))


def _first(groups):
  first = next(groups, None)
  if first is None:
    raise UserError('None of the images can be decoded: mend the files or name another folder.')
  return first


def _write_parquet(groups: Iterator[Embeddings], metadata: dict[str, str], file: BinaryIO) -> int:
  first, count = _first(groups), 0
  width = first.vectors.shape[1]
  schema = pa.schema({'id': pa.int64(), 'path': pa.string(), 'vector': pa.list_(pa.float32(), width)},
                     metadata)
  with pq.ParquetWriter(file, schema, write_page_checksum=True) as writer:
    for group in itertools.chain([first], groups):
      vectors = pa.FixedSizeListArray.from_arrays(pa.array(group.vectors.ravel()), width)
      writer.write_table(pa.table([pa.array(group.ids), pa.array(group.paths), vectors], schema=schema))
      count += len(group.ids)
  return count


def _write_npz(groups: Iterator[Embeddings], metadata: dict[str, str], file: BinaryIO) -> int:
  whole = joined([_first(groups), *groups])
  np.savez(file, ids=whole.ids, paths=np.array(whole.paths), vectors=whole.vectors,
           metadata=np.array(json.dumps(metadata)))
  return len(whole.ids)


def _read_parquet(file):
  table = pq.ParquetFile(file, page_checksum_verification=True)
  schema = table.schema_arrow
  width = schema.field('vector').type.list_size
  metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}

  def blocks() -> Iterator[Embeddings]:
    # Pages are read and their checksums verified lazily.
    with _whole(file):
      for batch in table.iter_batches(_ROWS, columns=['id', 'path', 'vector']):
        yield Embeddings(batch['id'].to_numpy(), batch['path'].to_pylist(),
                         batch['vector'].flatten().to_numpy().reshape(len(batch), width))

  return metadata, blocks()


def _read_npz(file):
  with np.load(file, allow_pickle=False) as arrays:
    whole = Embeddings(arrays['ids'], arrays['paths'].tolist(), arrays['vectors'])
    if whole.vectors.ndim != 2 or not len(whole.ids) == len(whole.paths) == len(whole.vectors):
      raise ValueError('The arrays are not of the same images.')
    return json.loads(str(arrays['metadata'])), iter([whole])
