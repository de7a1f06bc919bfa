"""Features in two dimensions, by what they allow: t-SNE, two principal components, or a single point."""
import dataclasses
import io
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from conic_jax.errors import UserError
from conic_jax.measures import unit_rows

_PROGRAM = Path(__file__).with_name('tsne_process.py')
_FEWEST = 50  # Points of a t-SNE: with fewer, its neighbourhoods are most of the points.
_ROUNDING = 1e-6  # Unit rows of float32 features that differ by less are equal.
_SECONDS = 300.0
_SUBSPACE, _ITERATIONS = 10, 30
# On shared cores OpenMP's threads wait for each other: two threads take five times as long.
_ONE_THREAD = dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'), '1')


@dataclasses.dataclass(frozen=True)
class Projection:
  """Points of features.

  Attributes:
    points: finite, [m, 2].
    rows: the row of the features that each point is of, ascending, [m].
    method: what the points are: 't-SNE', 'Two principal components' or 'One point'.
    notes: what a reader must know besides.
  """
  points: np.ndarray
  rows: np.ndarray
  method: str
  notes: tuple[str, ...] = ()


class NoEmbedding(Exception):
  """There is no t-SNE; the message says why."""


def project(features: np.ndarray, seed: int, seconds: float = _SECONDS) -> Projection:
  """Projects the directions of features to the plane; rows that are not finite are left out.

  Args:
    features: [n, F].
    seed: seed of PCA and t-SNE.
    seconds: what t-SNE may take.

  Returns:
    t-SNE; of fewer than 50 rows, or where t-SNE fails, two principal components; of rows that are all equal
    one point.

  Raises:
    UserError: if no row is finite.
  """
  rows = np.flatnonzero(np.isfinite(features).all(axis=1))
  if not len(rows):
    raise UserError(f'none of the features of {len(features):,} images is finite' if len(features) else
                    'there are no images to show')
  lost = len(features) - len(rows)
  notes = (f'{lost:,} without finite features left out',) if lost else ()
  units = unit_rows(features[rows])
  if not units.size or np.ptp(units, axis=0).max() < _ROUNDING:
    notes = 'all point in the same direction', *notes
    return Projection(np.zeros((len(rows), 2)), rows, 'One point', notes)
  if len(rows) < _FEWEST:
    return Projection(principal_plane(units), rows, 'Two principal components', notes)
  try:
    return Projection(tsne(units, seed, seconds), rows, 't-SNE', notes)
  except NoEmbedding as why:
    return Projection(principal_plane(units), rows, 'Two principal components', (f't-SNE {why}', *notes))


def principal_plane(features: np.ndarray) -> np.ndarray:
  """Features along their first two principal components, [n, F] to [n, 2], by subspace iteration."""
  centred = features - features.mean(axis=0)
  basis = np.random.default_rng(0).normal(size=(centred.shape[1], min(_SUBSPACE, *centred.shape)))
  for _ in range(_ITERATIONS):
    basis, _ = np.linalg.qr(centred.T @ (centred @ basis))
  inside = centred @ basis
  points = inside @ np.linalg.svd(inside, full_matrices=False)[2][:2].T
  return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))


def tsne(features: np.ndarray, seed: int, seconds: float) -> np.ndarray:
  """t-SNE in a process of its own, without JAX: whatever happens there does not end this one.

  Args:
    features: [n, F], finite.
    seed: seed of PCA and t-SNE.
    seconds: what it may take.

  Returns:
    Finite points [n, 2].

  Raises:
    NoEmbedding: if the process fails, crashes or takes longer.
  """
  given = io.BytesIO()
  np.save(given, features)
  command = [sys.executable, '-P', str(_PROGRAM), str(seed), str(math.ceil(seconds) + 1)]
  try:
    # Through pipes, as there may be no room for files.
    ended = subprocess.run(command, input=given.getvalue(), capture_output=True, timeout=seconds, check=False,
                           env=os.environ | _ONE_THREAD)
  except subprocess.TimeoutExpired:
    raise NoEmbedding(f'took over {seconds:g} s') from None
  except (OSError, ValueError) as error:
    raise NoEmbedding('could not start') from error
  if ended.returncode < 0:
    raise NoEmbedding(f'was ended by {_signal_name(-ended.returncode)}')
  try:
    points = np.load(io.BytesIO(ended.stdout), allow_pickle=False)
  except (ValueError, EOFError, OSError) as error:
    raise NoEmbedding('failed') from error
  if points.shape != (len(features), 2) or not np.isfinite(points).all():
    raise NoEmbedding('gave no points')
  return points


def _signal_name(number: int) -> str:
  try:
    return signal.Signals(number).name
  except ValueError:
    return f'signal {number}'
