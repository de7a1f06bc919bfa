"""Missed updates of rows that had no gradient for a while, in closed form.

Without a gradient, momentum SGD with weight decay is linear in a row and its momentum. The effect of many
steps is one product of 2×2 matrices, the same for all dimensions: computed in float64 on the host for any
range of steps, and applied in float32 on the device to returning rows.
"""
import itertools
import os
import zlib
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np

from conic_jax.errors import UserError
from conic_jax.memories.journal import REMEDY, replacing, sync_folder, write_whole

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

  The products of aligned blocks of 64, 128, 256 … steps are kept: with the rates about 5 bytes a step.
  Prefix products cannot be inverted: the determinant mᵏ underflows. One thread may append while another asks
  for products up to a step that it knows to be there.

  Args:
    path: file of the rates, float32 one after another; NaN for a skipped step. In PATH.sums is the CRC-32
      of all rates up to each, uint32.
    num_steps: how many of the file's rates to keep; 0 starts new files.
    momentum: m.
    weight_decay: λ.
    old: whether a version may have written the file that made no checksums; they are made here.

  Raises:
    UserError: as `read_rates`.
  """

  def __init__(self, path: Path, num_steps: int = 0, *, momentum: float, weight_decay: float,
               old: bool = False):
    self._path, self._momentum, self._weight_decay = path, momentum, weight_decay
    self._rates = read_rates(path, num_steps, old)
    self._length, self._sum = num_steps, zlib.crc32(self._rates[:num_steps].tobytes())
    if num_steps and not _sums_path(path).is_file():
      _add_sums(path, self._rates)
    self._file, self._sums = (os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
                              for file in (path, _sums_path(path)))
    for file in (self._file, self._sums):
      os.ftruncate(file, num_steps * 4)
    self._levels = self._tree()

  def __len__(self) -> int:
    """Steps whose rate is known."""
    return self._length

  @property
  def known(self) -> np.ndarray:
    """The rates so far, float32."""
    return self._rates[:self._length]

  def append(self, rate: float) -> None:
    """Adds the learning rate of the next step, NaN if it was skipped.

    Raises:
      UserError: if the disk is full.
    """
    written = np.float32(rate).tobytes()
    checksum = zlib.crc32(written, self._sum)
    try:
      write_whole(self._file, written, self._length * 4)
      write_whole(self._sums, np.array(checksum, '<u4').tobytes(), self._length * 4)
    except OSError as error:
      raise UserError(f'{self._path} could not be written ({error.strerror}). The checkpoints are whole: '
                      'free room on the disk and run the same command again.') from error
    step, self._sum = self._length, checksum
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
    os.fsync(self._sums)

  def close(self) -> None:
    """Releases the files."""
    os.close(self._file)
    os.close(self._sums)

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


def read_rates(path: Path, num_steps: int, old: bool = False) -> np.ndarray:
  """The first rates of a file of `Rates`, which is not changed.

  Args:
    path, old: as those of `Rates`.
    num_steps: how many rates to read.

  Returns:
    float32 [max(1, num_steps)].

  Raises:
    UserError: if the file holds fewer or is damaged.
  """
  if not num_steps:
    return np.zeros(1, '<f4')
  sums_path = _sums_path(path)
  _check_size(path, num_steps, 'rates')
  rates = np.fromfile(path, '<f4', num_steps)
  if sums_path.is_file() or not old:
    _check_size(sums_path, num_steps, 'checksums')
    sums = np.fromfile(sums_path, '<u4', num_steps)
    if zlib.crc32(rates.tobytes()) != sums[-1]:
      raise UserError(f'{path} or its checksums are damaged at step {_first_difference(rates, sums)}: '
                      f'{REMEDY}')
  wrong = np.isinf(rates) | (rates < 0)
  if wrong.any():
    raise UserError(f'{path} is damaged at step {np.argmax(wrong)}: {REMEDY}')
  return rates


def write_rates(path: Path, rates: np.ndarray) -> None:
  """Writes a file of `Rates`, as `read_rates` gives them."""
  with replacing(path) as file:
    file.write(rates.tobytes())
  _add_sums(path, rates)


def _sums_path(path):
  return path.with_name(path.name + '.sums')


def _check_size(path, num_steps, held):
  size = path.stat().st_size // 4 if path.is_file() else 0
  if size < num_steps:
    raise UserError(f'{path} has the {held} of {size} steps where {num_steps} were expected: {REMEDY}')


def _running_sums(rates):
  """The CRC-32 of the rates up to each: uint32 [k]."""
  sums = itertools.accumulate((rate.tobytes() for rate in rates), lambda sum, rate: zlib.crc32(rate, sum),
                              initial=0)
  return np.fromiter(itertools.islice(sums, 1, None), '<u4', len(rates))


def _first_difference(rates, sums):
  return int(np.argmax(_running_sums(rates) != sums))


def _add_sums(path, rates):
  """Makes the checksums of a file that has none, whole or not at all."""
  with replacing(_sums_path(path)) as file:
    file.write(_running_sums(rates).tobytes())
  sync_folder(path.parent)


def _with(array, index, value):
  """The array with one more entry, reallocated when full: readers of the old one keep it."""
  if index == len(array):
    array = np.concatenate([array, np.zeros((max(1024, index // 4), *array.shape[1:]), array.dtype)])
  array[index] = value
  return array
