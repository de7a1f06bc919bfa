"""Features of every image of a source, kept on the devices that computed them."""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from conic_jax.data import augment, pipeline, sources
from conic_jax.errors import UserError
from conic_jax.hardware.mesh import batch_sharding, check_batch_size, process_rows, split, to_global
from conic_jax.views import CentralView

Encode = Callable[[Any, jax.Array], jax.Array]

# Largest side for raw-pixel features; larger images are averaged down to it.
_PIXELS = 64
# Rows that a process sends at a time: bounds the device memory of `to_host`.
_GATHERED_ROWS = 16384


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Features:
  """Features with the labels and ids of their images, all sharded over the mesh along the first axis.

  Rows are in no global order; on each device the ids of the valid rows ascend.

  Attributes:
    features: float32 [N_padded, F], zero where `valid` is False.
    labels: int32 [N_padded], -1 for none.
    ids: int32 [N_padded].
    valid: bool [N_padded], False for padding and undecodable images.
  """
  features: jax.Array
  labels: jax.Array
  ids: jax.Array
  valid: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenEncoder:
  """An encoder to evaluate as it is.

  Attributes:
    encode: pure function (variables, images float32 [B, size, size, 3]) -> features [B, F].
    variables: its first argument, any tree of arrays.
    knn_encode: the same for the features that kNN compares; None for those of `encode`.
  """
  encode: Encode
  variables: Any
  knn_encode: Encode | None = None


class NotFinite(UserError):
  """Features that are NaN or infinite, of which no accuracy means anything."""


def check_finite(features: Features) -> None:
  """Checks the features of all images that could be decoded.

  Raises:
    NotFinite: with the number of images whose features are not.
  """
  bad = int(_count_not_finite(features))
  if bad:
    raise NotFinite(f'The features of {bad:,} images are NaN or infinite: no accuracy would mean anything. '
                    'Set config.dtype to float32, or evaluate an earlier checkpoint.')


@jax.jit
def _count_not_finite(features: Features) -> jax.Array:
  return jnp.sum(features.valid & ~jnp.all(jnp.isfinite(features.features), axis=1))


def pixels(variables: Any, images: jax.Array) -> jax.Array:
  """Raw pixels as features, [B, H, W, 3] to [B, H·W·3]: a baseline.

  Images with sides over 64 pixels are averaged down to 64 to save memory.
  """
  chex.assert_rank(images, 4)
  del variables
  height, width = (min(side, _PIXELS) for side in images.shape[1:3])
  if (height, width) != images.shape[1:3]:
    images = jax.image.resize(images, (len(images), height, width, 3), 'linear')
  return images.reshape(images.shape[0], -1)


def extract(encode: Encode, variables: Any, source: sources.Source, *, view: CentralView, batch_size: int,
            mesh: Mesh) -> Features:
  """Encodes the central crop of every image of a source.

  Compiles once for each `encode`: reuse the same function rather than a new closure.

  Args:
    encode: pure function (variables, images float32 [B, size, size, 3]) -> features [B, F].
    variables: first argument of `encode`, any tree of arrays.
    source: the images.
    view: how an image becomes an input.
    batch_size: images encoded at a time, over all devices.
    mesh: the mesh that the batch and the features are sharded over.

  Returns:
    The `Features` of the source, padded to a whole number of batches.

  Raises:
    UserError: if the mesh cannot split `batch_size`, or too many images cannot be decoded.
  """
  check_batch_size(batch_size, mesh, 'config.eval.batch_size')
  size = view.spec.size
  images = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.float32)
  width = jax.eval_shape(encode, variables, images).shape[1]
  batches = pipeline.eval_batches(source, size=size, resize=view.resize, batch_size=batch_size,
                                  rows=process_rows(mesh, batch_size))
  gathered = _empty(-(-source.num_images // batch_size), batch_size, width, mesh)
  undecodable = pipeline.UndecodableImages(source)
  for index, batch in enumerate(batches):
    undecodable.add(batch)
    gathered = _add_batch(gathered, index, variables, to_global(batch, mesh), encode=encode,
                          spec=view.spec, mesh=mesh)
  undecodable.check()
  return _merge_batches(gathered, mesh=mesh)


def to_host(features: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Copies the valid rows to the host of every process, in order of id.

  Returns:
    Features float32 [N, F], labels int32 [N] and ids int32 [N].
  """
  rows = jax.tree.map(_all_rows, features)
  order = np.flatnonzero(rows.valid)
  order = order[np.argsort(rows.ids[order], kind='stable')]
  return rows.features[order], rows.labels[order], rows.ids[order]


def _by_batch(mesh: Mesh) -> PartitionSpec:
  return PartitionSpec(None, *split(mesh))


def _empty(num_batches: int, batch_size: int, width: int, mesh: Mesh) -> Features:
  sharding = NamedSharding(mesh, _by_batch(mesh))
  def zeros(*shape, dtype):
    return jnp.zeros((num_batches, batch_size, *shape), dtype, device=sharding)
  return Features(zeros(width, dtype=jnp.float32), zeros(dtype=jnp.int32), zeros(dtype=jnp.int32),
                  zeros(dtype=jnp.bool))


@functools.partial(jax.jit, static_argnames=('encode', 'spec', 'mesh'), donate_argnums=0)
def _add_batch(gathered, index, variables, batch, *, encode, spec, mesh):
  images = augment.normalise(batch['views'][0][:, 0], spec)
  features = encode(variables, images).astype(jnp.float32)
  features = jnp.where(batch['valid'][:, None], features, 0.)
  added = Features(features, batch['label'], batch['id'], batch['valid'])
  added = jax.lax.with_sharding_constraint(added, batch_sharding(mesh))
  return jax.tree.map(lambda rows, new: rows.at[index].set(new), gathered, added)


@functools.partial(jax.jit, static_argnames='mesh', donate_argnums=0)
def _merge_batches(gathered, *, mesh):
  """Reshapes [batches, B, …] to [batches·B, …] without moving rows between devices."""
  def merge(rows):
    return rows.reshape(-1, *rows.shape[2:])
  return jax.shard_map(lambda local: jax.tree.map(merge, local), mesh=mesh,
                       in_specs=_by_batch(mesh), out_specs=split(mesh))(gathered)


def _all_rows(array: jax.Array) -> np.ndarray:
  local = np.concatenate([np.asarray(shard.data) for shard in array.addressable_shards])
  blocks = [multihost_utils.process_allgather(local[start:start + _GATHERED_ROWS], tiled=True)
            for start in range(0, len(local), _GATHERED_ROWS)]
  return np.concatenate(blocks)
