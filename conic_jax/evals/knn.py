"""Weighted k-nearest-neighbour classification over a bank sharded across devices."""
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from conic_jax.errors import UserError
from conic_jax.evals.features import Features, to_host
from conic_jax.hardware.mesh import split
from conic_jax.losses import normalise

# Queries of each device compared at a time; with `chunk` it bounds the similarities in memory.
_QUERIES = 128
# Smallest squared norm of a feature that is normalised.
_SMALLEST = float(np.finfo(np.float32).tiny)


def knn_accuracy(bank: Features, queries: Features, *, num_classes: int,
                 ks: Sequence[int], temperature: float = 0.07, chunk: int = 8192,
                 mesh: Mesh) -> dict[int, float]:
  """kNN accuracy: share of the queries that a vote of their nearest neighbours classifies correctly.

  vote(c) = Σ_{i in the k nearest, yᵢ = c} exp(sᵢ / temperature), sᵢ the cosine similarity.

  Args:
    bank: labelled features, sharded over the mesh.
    queries: labelled features, sharded over the mesh; those without a label are left out.
    num_classes: number of classes, C; labels lie in [0, C).
    ks: numbers of neighbours; a k larger than the bank means the whole bank.
    temperature: temperature of the votes.
    chunk: rows of the bank that each device compares at a time.
    mesh: the mesh.

  Returns:
    For each k, the share of queries whose class got the most votes (ties go to the lower class).

  Raises:
    UserError: if no query has a label.

  Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018.
  """
  similarities, labels, _ = _nearest(bank, queries, k=max(ks), chunk=chunk, mesh=mesh)
  hits, total = _count_hits(similarities, labels, queries.labels, queries.valid, temperature,
                            num_classes=num_classes, ks=tuple(ks))
  if not total:
    raise UserError('None of the images to classify has a label: kNN needs a source with classes, '
                    'such as a folder with one subfolder a class.')
  return {k: int(hit) / int(total) for k, hit in zip(ks, hits, strict=True)}


def neighbours(bank: Features, queries: Features, k: int, mesh: Mesh,
               chunk: int = 8192) -> tuple[np.ndarray, np.ndarray]:
  """The k images of the bank most similar to each valid query; queries are in order of id.

  Returns:
    Cosine similarities float32 [Q, k], descending, and ids int32 [Q, k]; k is at most the number of
    valid rows in the bank. Ties are in order of id.
  """
  similarities, _, ids = _nearest(bank, queries, k=k, chunk=chunk, mesh=mesh)
  def rows(array):
    return to_host(Features(array, queries.labels, queries.ids, queries.valid))[0]
  found = int(bank.valid.sum())
  return rows(similarities)[:, :found], rows(ids)[:, :found]


@functools.partial(jax.jit, static_argnames=('k', 'chunk', 'mesh'))
def _nearest(bank, queries, *, k, chunk, mesh):
  """Similarities, labels and ids of the nearest rows, [Q_padded, k], sharded like the queries.

  If the bank has fewer than k valid rows, the rest have similarity -inf.
  """
  axes, spec = mesh.axis_names, split(mesh)

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
  def search(bank, queries):
    def of_block(block):
      everyone = jax.lax.all_gather(block, axes, tiled=True)
      similarities, rows = _nearest_local(bank, everyone, k, chunk, axes)
      candidates = -similarities, bank.ids[rows], bank.labels[rows]
      candidates = jax.tree.map(functools.partial(_to_owner, axes=axes), candidates)
      similarities, ids, labels = jax.lax.sort(candidates, dimension=1, num_keys=2)
      return -similarities[:, :k], labels[:, :k], ids[:, :k]
    return _map_blocks(of_block, queries.features, _QUERIES)

  return search(bank, queries)


def _nearest_local(bank, queries, k, chunk, axes):
  """Similarities and row numbers of the nearest in this device's part of the bank, [Q, k]."""
  num_rows = bank.features.shape[0]
  chunk = min(chunk, num_rows)
  queries = normalise(queries, _SMALLEST)

  def body(index, best):
    # The last chunk is shifted back to end with the bank; rows already seen are masked.
    start = jnp.minimum(index * chunk, num_rows - chunk)
    rows = start + jnp.arange(chunk)
    part = normalise(jax.lax.dynamic_slice_in_dim(bank.features, start, chunk), _SMALLEST)
    valid = jax.lax.dynamic_slice_in_dim(bank.valid, start, chunk) & (rows >= index * chunk)
    similarities = jnp.einsum('qf,nf->qn', queries, part, precision=jax.lax.Precision.HIGHEST,
                              preferred_element_type=jnp.float32)
    similarities = jnp.where(valid[None], similarities, -jnp.inf)
    similarities = jnp.concatenate([best[0], similarities], axis=1)
    rows = jnp.concatenate([best[1], jnp.broadcast_to(rows[None], (len(queries), chunk))], axis=1)
    similarities, kept = jax.lax.top_k(similarities, k)
    return similarities, jnp.take_along_axis(rows, kept, axis=1)

  none = jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32)
  return jax.lax.fori_loop(0, -(-num_rows // chunk), body, jax.lax.pcast(none, axes, to='varying'))


def _to_owner(candidates, axes):
  """Sends each device the candidates that all devices found for its queries, [its queries, devices·k]."""
  devices = jax.lax.axis_size(axes)
  candidates = candidates.reshape(devices, -1, candidates.shape[1])
  candidates = jax.lax.all_to_all(candidates, axes, split_axis=0, concat_axis=0, tiled=True)
  return jnp.swapaxes(candidates, 0, 1).reshape(candidates.shape[1], -1)


def _map_blocks(function, rows, block):
  """Applies a function to blocks of rows in turn and concatenates the results."""
  num_rows = rows.shape[0]
  block = min(block, num_rows)
  rows = jnp.pad(rows, ((0, -num_rows % block), (0, 0)))
  results = jax.lax.map(function, rows.reshape(-1, block, rows.shape[1]))
  return jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:])[:num_rows], results)


@functools.partial(jax.jit, static_argnames=('num_classes', 'ks'))
def _count_hits(similarities, labels, truth, valid, temperature, *, num_classes, ks):
  weights = jnp.exp((similarities - similarities[:, :1]) / temperature)
  valid = valid & (truth >= 0)
  def hits(k):
    is_class = labels[:, :k, None] == jnp.arange(num_classes)[None, None]
    votes = jnp.sum(jnp.where(is_class, weights[:, :k, None], 0.), axis=1)
    return jnp.sum((jnp.argmax(votes, axis=1) == truth) & valid)
  return [hits(k) for k in ks], jnp.sum(valid)
