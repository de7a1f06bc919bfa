"""A keyed shuffle of 0 … N − 1 that needs no array of length N."""
from typing import Any, TypeVar

import jax
import numpy as np

HALF_ROUNDS = 8

# The finalisers of MurmurHash3 (Appleby, public domain): three shifts, a factor after the first two each.
_FINALISERS = {
  np.dtype(np.uint32): ((16, 13, 16), (0x85ebca6b, 0xc2b2ae35)),
  np.dtype(np.uint64): ((33, 33, 33), (0xff51afd7ed558ccd, 0xc4ceb9fe1a85ec53)),
}

_Array = TypeVar('_Array', np.ndarray, jax.Array)


def shuffled(positions: np.ndarray, num_images: int, seed: int, epoch: int) -> np.ndarray:
  """Maps positions in an epoch to image ids by a keyed bijection of 0 … num_images - 1.

  Args:
    positions: integers in [0, num_images), of any shape.
    num_images: N, up to 2^62.
    seed: seed of the run, non-negative.
    epoch: epoch number; each epoch has its own permutation.

  Returns:
    Ids, int64, in the shape of `positions`.
  """
  keys = np.random.SeedSequence([seed, epoch]).generate_state(HALF_ROUNDS, np.uint64)
  ids = np.array(positions, np.int64)
  outside = np.ones(ids.shape, bool)
  while outside.any():
    ids[outside] = permuted(ids[outside], num_images, keys)
    outside = ids >= num_images
  return ids


def permuted(values: _Array, num_images: int, keys: _Array) -> _Array:
  """Maps values by a keyed bijection of a grid that is slightly larger than 0 … num_images - 1.

  A value is split into (left, right) in base `columns`; a Feistel network alternately adds to each half a
  hash of the other, which is invertible. The caller maps results outside again until they fall inside (cycle
  walking).

  Args:
    values: integers on the grid, of NumPy or JAX; the grid must fit in their type.
    num_images: N.
    keys: uint32 or uint64 [HALF_ROUNDS], from the same library; their width is that of the hash.

  Returns:
    Integers on the grid, in the type and shape of `values`.

  Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002.
  """
  columns = int(np.ceil(np.sqrt(num_images)))
  rows = -(-num_images // columns)
  left: Any = values // columns
  right: Any = values % columns
  for left_key, right_key in keys.reshape(-1, 2):
    left = (left + _hash(right, left_key, rows)) % rows
    right = (right + _hash(left, right_key, columns)) % columns
  return left * columns + right


def _hash(half, key, below):
  """A keyed hash of integers in [0, below), in their own type."""
  word = key.dtype
  (first, second, third), factors = _FINALISERS[word]
  x = half.astype(word) ^ key
  x = (x ^ (x >> word.type(first))) * word.type(factors[0])
  x = (x ^ (x >> word.type(second))) * word.type(factors[1])
  return ((x ^ (x >> word.type(third))) % word.type(below)).astype(half.dtype)
