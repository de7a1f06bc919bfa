"""How images relate by their features: neighbours, clusters, outliers and copies. Pure functions."""
from collections.abc import Sequence
from typing import Any

import numpy as np

from conic_jax.measures import unit_rows

_CHUNK = 1024                   # images compared with all at a time
_MINI_BATCH_FROM = 10_000       # images from which k-means takes batches of them
_LANDMARKS_NEAR = 4             # landmarks that place another image
ALIKE = 0.95                    # correlation of the grey thumbnails of copies


def neighbours(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """The k nearest other images of each, by cosine similarity.

  Args:
    vectors: [n, F].
    k: number of neighbours.

  Returns:
    Similarities float32 and indices int64, both [n, min(k, n − 1)], the nearest first.
  """
  units = unit_rows(vectors).astype(np.float32)
  k = min(k, len(units) - 1)
  found, indices = np.zeros((len(units), k), np.float32), np.zeros((len(units), k), np.int64)
  for start in range(0, len(units) if k else 0, _CHUNK):
    part = slice(start, start + _CHUNK)
    similarities = units[part] @ units.T
    np.put_along_axis(similarities, np.arange(start, start + len(similarities))[:, None], -np.inf, axis=1)
    nearest = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(similarities, nearest, axis=1)
    order = np.argsort(-values, axis=1, kind='stable')
    found[part], indices[part] = (np.take_along_axis(each, order, axis=1) for each in (values, nearest))
  return found, indices


def clusters(vectors: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """k-means of the directions of the features, the largest cluster first.

  Args:
    vectors: [n, F].
    count: number of clusters, at most n.
    seed: of the initial centres.

  Returns:
    The cluster of each image, int64 [n], and of each cluster its medoid, the image nearest to its centre,
    int64 [c]; c is smaller than `count` where there are fewer different features.
  """
  from sklearn.cluster import KMeans, MiniBatchKMeans  # Takes a second, and the Python API imports this file.
  units = unit_rows(vectors).astype(np.float32)
  count = min(count, len(np.unique(units, axis=0)))
  make: Any = MiniBatchKMeans if len(units) >= _MINI_BATCH_FROM else KMeans
  model = make(count, n_init=3, random_state=seed).fit(units)
  order = np.argsort(-np.bincount(model.labels_, minlength=count), kind='stable')
  labels, centres = np.argsort(order)[model.labels_], model.cluster_centers_[order]
  distances = np.linalg.norm(units - centres[labels], axis=1)
  medoids = [min(np.flatnonzero(labels == cluster), key=distances.__getitem__)
             for cluster in np.unique(labels)]
  return labels, np.array(medoids)


def usual_count(images: int) -> int:
  """How many clusters to look for: √(n / 2), from 2 to 40."""
  return max(1, min(images, 40, max(2, round((images / 2) ** 0.5))))


def outlyingness(similarities: np.ndarray) -> np.ndarray:
  """How far each image is from its neighbours: 1 − their mean similarity, float32 [n]."""
  return 1 - similarities.mean(axis=1) if similarities.size else np.zeros(len(similarities), np.float32)


def copies(indices: np.ndarray, greys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Pairs of neighbours that show the same, mirrored or not.

  The features say which images to compare, and small grey thumbnails whether they are copies: an encoder
  that does not mind colour or crop finds many images alike that are not the same.

  Args:
    indices: neighbours, int64 [n, k].
    greys: thumbnails, float32 [n, s, s].

  Returns:
    Pairs (i, j) with i < j, int64 [p, 2], and the correlation of their thumbnails, float32 [p], the most
    alike first.
  """
  pairs = np.stack([np.repeat(np.arange(len(indices)), indices.shape[1]), indices.ravel()], axis=1)
  pairs = np.unique(np.sort(pairs, axis=1), axis=0)
  flat = _standardised(greys)
  mirrored = _standardised(greys[:, :, ::-1])
  first, second = flat[pairs[:, 0]], pairs[:, 1]
  alike = np.maximum((first * flat[second]).sum(1), (first * mirrored[second]).sum(1)) if len(pairs) else \
    np.zeros(0, np.float32)
  kept = np.flatnonzero(alike >= ALIKE)
  kept = kept[np.argsort(-alike[kept], kind='stable')]
  return pairs[kept], alike[kept].astype(np.float32)


def placed(vectors: np.ndarray, landmarks: Sequence[int] | np.ndarray, points: np.ndarray) -> np.ndarray:
  """Points of all images from those of some: each at the mean of its nearest landmarks, by similarity.

  Args:
    vectors: [n, F].
    landmarks: the images that have points, [m].
    points: theirs, [m, 2].

  Returns:
    float64 [n, 2]; the landmarks keep their own.
  """
  units, near = unit_rows(vectors).astype(np.float32), min(_LANDMARKS_NEAR, len(landmarks))
  known, out = units[landmarks], np.zeros((len(units), 2))
  for start in range(0, len(units), _CHUNK):
    similarities = units[start:start + _CHUNK] @ known.T
    nearest = np.argpartition(-similarities, near - 1, axis=1)[:, :near]
    weights = np.take_along_axis(similarities, nearest, axis=1)
    weights = np.exp(20 * (weights - weights.max(axis=1, keepdims=True)))
    weights /= weights.sum(axis=1, keepdims=True)
    out[start:start + _CHUNK] = (weights[:, :, None] * points[nearest]).sum(axis=1)
  out[landmarks] = points
  return out


def _standardised(greys: np.ndarray) -> np.ndarray:
  """Thumbnails as unit vectors of mean 0, [n, s²]; one without contrast is 0."""
  flat = greys.reshape(len(greys), -1).astype(np.float32)
  flat = flat - flat.mean(axis=1, keepdims=True)
  lengths = np.linalg.norm(flat, axis=1, keepdims=True)
  return np.where(lengths > 1e-3, flat / np.maximum(lengths, 1e-3), 0)
