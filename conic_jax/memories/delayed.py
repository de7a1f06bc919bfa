"""Missed updates of rows that had no gradient for a while, in closed form.

Without a gradient, momentum SGD with weight decay is linear in a row and its momentum. The effect of many
steps is one product of 2×2 matrices, the same for all dimensions: computed in float64 on the host for any
range of steps, and applied in float32 on the device to returning rows.
"""
import itertools
import os
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np

from conic_jax.errors import UserError
from conic_jax.memories.journal import REMEDY, write_whole

# Steps per stored product.
_BLOCK = 64
_BLOCKS_AT_ONCE = 4096


def matrix(lr: jax.Array, *, momentum: float, weight_decay: float) -> jax.Array:
  """Effect of one step on [v; w]; the identity for a skipped step, which has NaN as its learning rate.

  A(η) = [[m, λ], [−ηm, 1 − ηλ]]

  Args:
    lr: η, float32 [].
    momentum: m.
    weight_decay: λ.

  Returns:
    float32 [2, 2].

  Source: ConIC, Appendix A.2.
  """
  chex.assert_rank(lr, 0)
  step = jnp.array([[momentum, weight_decay], [-lr * momentum, 1 - lr * weight_decay]], jnp.float32)
  return jnp.where(jnp.isnan(lr), jnp.eye(2), step)


def apply(products: jax.Array, rows: jax.Array) -> jax.Array:
  """Applies the missed updates to rows: [v; w] ← P [v; w].

  Args:
    products: float32 [k, 2, 2], P of each row.
    rows: float32 [k, 2, D], weights, then momentum, as in the stores.

  Returns:
    float32 [k, 2, D], in the same order.
  """
  chex.assert_shape(rows, (None, 2, None))
  chex.assert_shape(products, (len(rows), 2, 2))
  weights, momentum = rows[:, 0], rows[:, 1]
  entry = lambda row, column: products[:, row, column, None]
  return jnp.stack([entry(1, 0) * momentum + entry(1, 1) * weights,
                    entry(0, 0) * momentum + entry(0, 1) * weights], axis=1)


class Rates:
  """The learning rate used in every step, and the products of A(η) over any range of steps.

  The products of aligned blocks of 64, 128, 256 … steps are stored: with the rates about 5 bytes a step.
  Prefix products cannot be inverted: the determinant mᵏ underflows. One thread may append while another asks
  for products up to a step that it knows to be there.

  Args:
    path: file of the rates, float32 one after another; NaN for a skipped step.
    num_steps: how many of the file's rates to keep; 0 starts a new file.
    momentum: m.
    weight_decay: λ.

  Raises:
    UserError: if the file holds fewer, or an invalid rate.
  """

  def __init__(self, path: Path, num_steps: int = 0, *, momentum: float, weight_decay: float):
    self._path, self._momentum, self._weight_decay = path, momentum, weight_decay
    self._rates = self._read(num_steps)
    self._length = num_steps
    self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    os.ftruncate(self._file, num_steps * 4)
    self._levels = self._tree()

  def __len__(self) -> int:
    """Steps whose rate is known."""
    return self._length

  def append(self, rate: float) -> None:
    """Adds the learning rate of the next step, NaN if it was skipped.

    Raises:
      UserError: if the disk is full.
    """
    try:
      write_whole(self._file, np.float32(rate).tobytes(), self._length * 4)
    except OSError as error:
      raise UserError(f'{self._path} could not be written ({error.strerror}). The checkpoints are whole: '
                      'free room on the disk and run the same command again.') from error
    step = self._length
    self._rates = _with(self._rates, step, np.float32(rate))
    if (step + 1) % _BLOCK == 0:
      self._add_block(step // _BLOCK)
    self._length = step + 1  # Last, so that readers find everything up to it.

  def products(self, start: np.ndarray, stop: int) -> np.ndarray:
    """P(s → t) = A(η_{t−1}) ··· A(η_s), the effect of steps s to t − 1.

    Args:
      start: s, int64 [k], 0 ≤ s ≤ t.
      stop: t, at most the number of rates.

    Returns:
      float64 [k, 2, 2], for [v; w].

    Source: ConIC, Appendix A.2.
    """
    start = np.asarray(start, np.int64)
    block = -(-start // _BLOCK)
    steps = start[:, None] + np.arange(_BLOCK)
    own = steps < np.minimum(block * _BLOCK, stop)[:, None]  # In the block where the row starts.
    products = self._multiplied(np.where(own, self._rates[np.where(own, steps, 0)], np.nan))
    under_way = np.flatnonzero(block * _BLOCK <= stop)
    block = block[under_way]
    for level, (last, rest) in enumerate(self._rests(stop)):
      here = block == last
      arrived = under_way[here]
      products[arrived] = rest @ products[arrived]
      under_way, block = under_way[~here], block[~here]
      if not len(under_way):
        break
      odd = block % 2 == 1
      moved = under_way[odd]
      products[moved] = self._levels[level][block[odd]] @ products[moved]
      block = (block + 1) // 2
    return products

  def checkpoint(self) -> None:
    """Flushes the rates so far to disk."""
    os.fsync(self._file)

  def close(self) -> None:
    """Releases the file."""
    os.close(self._file)

  def _read(self, num_steps):
    size = self._path.stat().st_size // 4 if self._path.is_file() else 0
    if size < num_steps:
      raise UserError(f'{self._path} has the rates of {size} steps where {num_steps} were expected: '
                      f'{REMEDY}')
    rates = np.fromfile(self._path, '<f4', num_steps) if num_steps else np.zeros(1, '<f4')
    wrong = np.isinf(rates) | (rates < 0)
    if wrong.any():
      raise UserError(f'{self._path} is damaged at step {np.argmax(wrong)}: {REMEDY}')
    return rates

  def _multiplied(self, rates):
    """A(η) of the last of the rates ··· A(η) of the first: float64 [k, 2, 2] of [k, 64]."""
    rates = rates.T.astype(np.float64)
    skipped = np.isnan(rates)
    rates = np.where(skipped, 0, rates)
    products = np.array([[np.where(skipped, 1, self._momentum), np.where(skipped, 0, self._weight_decay)],
                         [-self._momentum * rates, 1 - self._weight_decay * rates]])
    while products.shape[2] > 1:
      later, earlier = products[:, :, 1::2], products[:, :, ::2]
      products = later[:, :1] * earlier[0] + later[:, 1:] * earlier[1]
    return np.ascontiguousarray(np.moveaxis(products[:, :, 0], -1, 0))

  def _rests(self, stop):
    """(t // b, product of the steps from the last multiple of b to t) for b = 64, 128 … until b exceeds t."""
    last = stop // _BLOCK
    rates = np.full(_BLOCK, np.nan)
    rates[:stop - last * _BLOCK] = self._rates[last * _BLOCK:stop]
    rest = self._multiplied(rates[None])[0]
    for level in itertools.count():
      yield last, rest
      if last == 0:
        return
      if last % 2:
        rest = rest @ self._levels[level][last - 1]
      last //= 2

  def _add_block(self, block):
    product = self._multiplied(self._rates[None, block * _BLOCK:(block + 1) * _BLOCK])[0]
    for level in itertools.count():
      if level == len(self._levels):
        self._levels.append(np.zeros((0, 2, 2)))
      self._levels[level] = _with(self._levels[level], block, product)
      if block % 2 == 0:
        return
      product = product @ self._levels[level][block - 1]
      block //= 2

  def _tree(self):
    blocks = self._rates[:self._length // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    level = np.concatenate([np.zeros((0, 2, 2)), *(
      self._multiplied(blocks[first:first + _BLOCKS_AT_ONCE])
      for first in range(0, len(blocks), _BLOCKS_AT_ONCE))])
    levels = [level]
    while len(level) > 1:
      pairs = len(level) // 2 * 2
      level = level[1:pairs:2] @ level[:pairs:2]
      levels.append(level)
    return levels


def _with(array, index, value):
  """The array with one more entry, reallocated when full: readers of the old one keep it."""
  if index == len(array):
    array = np.concatenate([array, np.zeros((max(1024, index // 4), *array.shape[1:]), array.dtype)])
  array[index] = value
  return array
