"""A keyed shuffle of 0 … N − 1 that needs no array of length N."""
import numpy as np

_HALF_ROUNDS = 8


def shuffled(positions: np.ndarray, num_images: int, seed: int, epoch: int) -> np.ndarray:
  """Maps positions in an epoch to image ids by a keyed bijection of 0 … num_images - 1.

  A position is split into (left, right) in base `columns`; a Feistel network alternately adds to each
  half a hash of the other, which is invertible. The grid is slightly larger than `num_images`:
  results outside are mapped again until they fall inside (cycle walking).

  Args:
    positions: integers in [0, num_images), of any shape.
    num_images: N, up to 2^62.
    seed: seed of the run, non-negative.
    epoch: epoch number; each epoch has its own permutation.

  Returns:
    Ids, int64, in the shape of `positions`.

  Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002.
  """
  columns = int(np.ceil(np.sqrt(num_images)))
  rows = -(-num_images // columns)
  keys = np.random.SeedSequence([seed, epoch]).generate_state(_HALF_ROUNDS, np.uint64)
  ids = np.array(positions, np.int64)
  outside = np.ones(ids.shape, bool)
  while outside.any():
    ids[outside] = _permute(ids[outside], rows, columns, keys)
    outside = ids >= num_images
  return ids


def _permute(values, rows, columns, keys):
  left, right = (half.astype(np.uint64) for half in np.divmod(values, columns))
  for left_key, right_key in keys.reshape(-1, 2):
    left = (left + _hash(right ^ left_key) % np.uint64(rows)) % np.uint64(rows)
    right = (right + _hash(left ^ right_key) % np.uint64(columns)) % np.uint64(columns)
  return left.astype(np.int64) * columns + right.astype(np.int64)


def _hash(x):
  """The 64-bit finaliser of MurmurHash3 (Appleby, public domain)."""
  x = (x ^ (x >> np.uint64(33))) * np.uint64(0xff51afd7ed558ccd)
  x = (x ^ (x >> np.uint64(33))) * np.uint64(0xc4ceb9fe1a85ec53)
  return x ^ (x >> np.uint64(33))
