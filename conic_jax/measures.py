"""Label-free measures of features as pure functions, in float64 on the host.

Shapes: n images, V views of each, F dimensions. Every measure is finite for constant, repeated or zero
features; these count as a single point: one dimension, and no image distinguishable from another.
"""
import chex
import numpy as np

# Added to the scatter within an image, in units of the features' variance.
_RIDGE = 1e-4
# Features are float32: relative differences below this are rounding errors.
_ROUNDING = 1e-6


def effective_rank(weights: np.ndarray) -> float:
  """Effective number of weights, the exponential of their entropy: exp(−Σ pᵢ log pᵢ), pᵢ = wᵢ/Σw.

  Args:
    weights: [k], singular values or eigenvalues; negative ones, due to rounding, count as zero.

  Returns:
    A number from 1 to k; 1 if all weights are zero.

  Source: Roy and Vetterli (2007), The effective rank.

  >>> effective_rank(np.array([2., 2., 0.]))
  2.0
  """
  weights = np.maximum(np.asarray(weights, np.float64), 0)
  chex.assert_rank(weights, 1)
  total = weights.sum()
  if not total > 0:
    return 1.0
  shares = weights[weights > 0] / total
  return float(np.exp(-np.sum(shares * np.log(shares))))


def rankme(features: np.ndarray) -> float:
  """RankMe: the effective rank of the uncentred features' singular values.

  Args:
    features: [n, F].

  Returns:
    A number from 1 (all features on a line) to min(n, F).

  Source: RankMe (Garrido et al. 2023), Eq. 1; singular values of zero contribute nothing here, whereas the
  paper adds 1e-7 to every share.
  """
  features = _scaled(features)
  chex.assert_rank(features, 2)
  gram = features @ features.T if len(features) <= features.shape[1] else features.T @ features
  values = np.linalg.eigvalsh(gram) if gram.size else np.zeros(0)
  # Eigenvalues are accurate up to the rounding of the largest; their roots, the singular values, less so.
  values = np.where(values > len(values) * np.finfo(np.float64).eps * values.max(initial=0), values, 0)
  return effective_rank(np.sqrt(values))


def retrieval(first: np.ndarray, second: np.ndarray) -> float:
  """How often an image's other view is its nearest by cosine similarity, averaged over both directions.

  ½ · share of n with argmaxⱼ x̄ₙ·ȳⱼ = n  +  ½ · share of n with argmaxⱼ ȳₙ·x̄ⱼ = n

  Args:
    first, second: [n, F], one view and another of each image.

  Returns:
    A share from 0 to 1; chance is 1/n. Ties count as misses.
  """
  chex.assert_rank([first, second], 2)
  chex.assert_equal_shape([first, second])
  similarities = unit_rows(first) @ unit_rows(second).T
  if len(similarities) < 2:
    return float(len(similarities))
  own = np.diagonal(similarities)
  others = np.where(np.eye(len(own), dtype=bool), -np.inf, similarities) + _ROUNDING
  return float(np.mean([own > others.max(axis=1), own > others.max(axis=0)]))


def spread(features: np.ndarray) -> float:
  """The standard deviation of x̄·√F over the images, averaged over dimensions; see `losses.feature_std`.

  Near 1 if features spread over the sphere, 0 if they have collapsed to a point.

  Args:
    features: [n, F].
  """
  chex.assert_rank(features, 2)
  unit = unit_rows(features) * features.shape[1] ** 0.5
  return float(unit.std(axis=0).mean()) if len(unit) else 0.0


def lidar(views: np.ndarray) -> float:
  """LiDAR: the effective rank of the discriminant matrix whose classes are the images.

  λ = eigenvalues of Σw^−½ Σb Σw^−½,  Σb = E (μₙ − μ)(μₙ − μ)ᵀ,  Σw = E (xₙᵛ − μₙ)(xₙᵛ − μₙ)ᵀ + δ·I

  Args:
    views: [n, V, F], V ≥ 2 views of each image.

  Returns:
    A number from 1 to min(n − 1, F). Directions count if they vary between images but not between the views
    of one image; those that vary as much between views do not count.

  Source: LiDAR (Thilak et al. 2023), Eq. 1 to 4, with δ = 1e-4. Here features are divided by their overall
  standard deviation, so that δ means the same for every network.
  """
  views = _scaled(views)
  chex.assert_rank(views, 3)
  centred = views - views.mean(axis=(0, 1), keepdims=True) if views.size else views
  if len(views) < 2 or np.abs(centred).max() < _ROUNDING:
    return 1.0
  views = _scaled(centred)
  means = views.mean(axis=1)
  between = means - means.mean(axis=0)
  if np.abs(between).max() < _ROUNDING:
    return 1.0
  within = (views - means[:, None]).reshape(-1, views.shape[-1])
  # B Σw⁻¹ Bᵀ is n × n and has the non-zero eigenvalues of the matrix above, up to scale.
  return effective_rank(np.linalg.eigvalsh(_whitened(between, within)))


def _whitened(between: np.ndarray, within: np.ndarray) -> np.ndarray:
  """B (WᵀW/m + δ·I)⁻¹ Bᵀ, [n, n], for B [n, F] and W [m, F]; solves the smaller of F × F and m × m."""
  rows, dim = within.shape
  if dim <= rows:
    return between @ np.linalg.solve(within.T @ within / rows + _RIDGE * np.eye(dim), between.T)
  crossed = between @ within.T
  inner = np.linalg.solve(within @ within.T + _RIDGE * rows * np.eye(rows), crossed.T)
  return (between @ between.T - crossed @ inner) / _RIDGE


def _scaled(features: np.ndarray) -> np.ndarray:
  """Features divided by their root mean square, float64; zeros stay zero."""
  features = np.asarray(features, np.float64)
  largest = np.abs(features).max(initial=0)
  if not largest > 0:
    return features
  features = features / largest  # So that squares neither overflow nor underflow.
  return features / np.sqrt(np.mean(features ** 2))


def unit_rows(features: np.ndarray) -> np.ndarray:
  """Rows normalised to unit norm, float64; zero rows stay zero."""
  features = np.asarray(features, np.float64)
  largest = np.abs(features).max(axis=-1, initial=0, keepdims=True)
  features = features / np.where(largest > 0, largest, 1)
  norms = np.linalg.norm(features, axis=-1, keepdims=True)
  return features / np.where(norms > 0, norms, 1)
