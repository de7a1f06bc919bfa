"""Losses and measures as pure functions of features: no parameters, no mesh.

Shapes: B images, V views of each, M = B·V features, D dimensions, N instances. Feature m of the
image-major order belongs to image m // V.
"""
import chex
import jax
import jax.numpy as jnp
import numpy as np

_HIGHEST = jax.lax.Precision.HIGHEST
# The logit of masked entries: their share of any softmax is zero, and everything stays finite.
MASKED = -1e9


def normalise(vectors: jax.Array, epsilon: float = 1e-12) -> jax.Array:
  """x̄ = x / ‖x‖ along the last axis; finite at x = 0, with a finite gradient.

  Args:
    vectors: [..., D].
    epsilon: lower bound of the squared norm in the division.

  Returns:
    [..., D] in float32 (float64 stays), of unit norm.
  """
  vectors = vectors.astype(np.promote_types(vectors.dtype, np.float32))
  squared = jnp.sum(vectors ** 2, axis=-1, keepdims=True)
  return vectors * jax.lax.rsqrt(jnp.maximum(squared, epsilon))


def masked_mean(values: jax.Array, valid: jax.Array) -> jax.Array:
  """Mean of `values` where `valid`; zero if nothing is valid."""
  weights = jnp.broadcast_to(valid, values.shape).astype(values.dtype)
  return jnp.sum(jnp.where(weights > 0, values, 0)) / jnp.maximum(jnp.sum(weights), 1)


def instance_classification(features: jax.Array, rows: jax.Array, ids: jax.Array,
                            temperature: float) -> jax.Array:
  """Cosine softmax over all instances: the readable reference of `partitioned.scores`.

  ℓs(xₙᵏ) = −log [ e^{w̄ₙᵀx̄ₙᵏ/τ} / Σⱼ e^{w̄ⱼᵀx̄ₙᵏ/τ} ]

  Args:
    features: [M, D], normalised here.
    rows: [N, D], the classifier's weights, normalised here.
    ids: int [M], the instance of each feature.
    temperature: τ.

  Returns:
    [M], the loss of each feature.

  Source: ConIC, Eq. 1 and 4.
  """
  chex.assert_rank([features, rows, ids], [2, 2, 1])
  chex.assert_equal_shape_prefix([features, ids], 1)
  logits = jnp.matmul(normalise(features), normalise(rows).T, precision=_HIGHEST) / temperature
  positives = jnp.take_along_axis(logits, ids[:, None], axis=1)[:, 0]
  return jax.nn.logsumexp(logits, axis=1) - positives


def consistency(views: jax.Array) -> jax.Array:
  """Squared cosine distance between the views of an image, over all ordered pairs.

  ℓc = mean over i ≠ j of (1 − x̄ᵢᵀx̄ⱼ)²

  Args:
    views: [B, V, D] with V ≥ 2, normalised here.

  Returns:
    [B], each image's mean over its V(V − 1) ordered pairs.

  Raises:
    ValueError: if there is only one view.

  Source: ConIC, Eq. 2 and 3 (a mean here, a sum in the paper: with two views, averaging ℓs over the views and
  ℓc over the pairs keeps the paper's ratio).

  >>> import jax.numpy as jnp
  >>> consistency(jnp.array([[[1., 0.], [0., 1.]]]))
  Array([1.], dtype=float32)
  """
  chex.assert_rank(views, 3)
  count = views.shape[1]
  if count < 2:
    raise ValueError('consistency needs at least two views of each image.')
  unit = normalise(views)
  similarity = jnp.einsum('bid,bjd->bij', unit, unit, precision=_HIGHEST)
  pairs = (1 - similarity) ** 2 * (1 - jnp.eye(count, dtype=unit.dtype))[None]
  return jnp.sum(pairs, axis=(1, 2)) / (count * (count - 1))


def paced_weight(alpha: float, pace: float, loss: jax.Array, chance: float) -> jax.Array:
  """Weight of the consistency loss, held back until the instance loss falls.

  α · min(1, c · max(0, 1 − ℓs/ℓ₀))

  Consistency alone is minimal if all features are the same point. Early in training nothing prevents that:
  the rows are random, and ℓs stays at ℓ₀. The full weight is reached when ℓs has fallen by 1/c of ℓ₀.

  Args:
    alpha: α, the full weight.
    pace: c; 0 gives α from the start.
    loss: [], ℓs, the instance loss of the batch; no gradient flows through it.
    chance: ℓ₀, its value at chance: log N over all classes.

  Returns:
    [], between 0 and α.
  """
  chex.assert_rank(loss, 0)
  if not pace:
    return jnp.float32(alpha)
  fallen = 1 - jax.lax.stop_gradient(loss) / chance
  return alpha * jnp.clip(pace * fallen, 0, 1)


def conic(views: jax.Array, rows: jax.Array, ids: jax.Array, temperature: float,
          alpha: float) -> jax.Array:
  """ConIC's loss of each image: mean over views of ℓs + α · mean over ordered pairs of ℓc.

  Args:
    views: [B, V, D]; rows: [N, D]; ids: int [B].
    temperature: τ; alpha: α.

  Returns:
    [B].

  Source: ConIC, L = Ls + α Lc.
  """
  images, count, dim = views.shape
  instance = instance_classification(views.reshape(-1, dim), rows, jnp.repeat(ids, count), temperature)
  return instance.reshape(images, count).mean(axis=1) + alpha * consistency(views)


def alignment(views: jax.Array, valid: jax.Array) -> jax.Array:
  """Mean squared distance between the views of an image: E ‖x̄ᵢ − x̄ⱼ‖², over unordered pairs.

  Args:
    views: [B, V, D], normalised here; valid: bool [B].

  Returns:
    [], between 0 (all views equal) and 4.

  Source: Wang and Isola (2020), with their α = 2.
  """
  chex.assert_rank([views, valid], [3, 1])
  chex.assert_equal_shape_prefix([views, valid], 1)
  unit = normalise(views)
  count = views.shape[1]
  similarity = jnp.einsum('bid,bjd->bij', unit, unit, precision=_HIGHEST)
  distances = (2 - 2 * similarity) * (1 - jnp.eye(count))[None]
  return masked_mean(jnp.sum(distances, axis=(1, 2)) / max(1, count * (count - 1)), valid)


def uniformity(features: jax.Array, valid: jax.Array, t: float = 2.0) -> jax.Array:
  """log E e^{−t ‖x̄ − ȳ‖²} over pairs of different images of a batch.

  Args:
    features: [B, D], one view of each image, normalised here; valid: bool [B].
    t: the inverse width of the kernel.

  Returns:
    [], at most 0; the lower, the more evenly the features cover the sphere.

  Source: Wang and Isola (2020).
  """
  chex.assert_rank([features, valid], [2, 1])
  chex.assert_equal_shape_prefix([features, valid], 1)
  unit = normalise(features)
  pair = valid[:, None] & valid[None] & ~jnp.eye(len(valid), dtype=bool)
  exponents = jnp.where(pair, -t * (2 - 2 * unit @ unit.T), -jnp.inf)
  return jax.nn.logsumexp(exponents) - jnp.log(jnp.maximum(pair.sum(), 1))


def feature_std(features: jax.Array, valid: jax.Array) -> jax.Array:
  """Standard deviation over the images of each dimension of x̄·√D, averaged over dimensions.

  Near 1 if features spread over the sphere, 0 if they collapsed to a point.

  Args:
    features: [M, D], normalised here; valid: bool [M].
  """
  chex.assert_rank([features, valid], [2, 1])
  chex.assert_equal_shape_prefix([features, valid], 1)
  unit = normalise(features) * features.shape[-1] ** 0.5
  weights = valid.astype(unit.dtype)[:, None] / jnp.maximum(valid.sum(), 1).astype(unit.dtype)
  mean = jnp.sum(unit * weights, axis=0)
  return jnp.sqrt(jnp.sum((unit - mean[None]) ** 2 * weights, axis=0)).mean()


def contrast(positives: jax.Array, negatives: jax.Array) -> jax.Array:
  """InfoNCE of one or several queries together: −log [Σᵢ e^{pᵢ} / (Σᵢ e^{pᵢ} + Σᵢ Σⱼ e^{nᵢⱼ})].

  Args:
    positives: [B, P], logits qᵢ·kᵢ/τ of P queries with their own keys; with P = 1 it is InfoNCE.
    negatives: [B, P, K], logits qᵢ·kⱼ/τ of each query with other images' keys.

  Returns:
    [B].

  Source: MoCo (He et al. 2020), Eq. 1; InsCon, Eq. 2 and 3, with every negative counted for each of the P
  queries and τ applied everywhere.

  >>> import jax.numpy as jnp
  >>> contrast(jnp.zeros((1, 1)), jnp.zeros((1, 1, 3)))  # log 4
  Array([1.3862944], dtype=float32)
  """
  chex.assert_rank([positives, negatives], [2, 3])
  chex.assert_equal_shape_prefix([positives, negatives], 2)
  own = jax.nn.logsumexp(positives, axis=1)
  others = jax.nn.logsumexp(jax.nn.logsumexp(negatives, axis=2), axis=1)
  return jnp.logaddexp(0., others - own)


def symmetric_kl(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
  """½ KL(P‖Q) + ½ KL(Q‖P) = ½ Σ (P − Q)(log P − log Q) of two softmaxes over the last axis.

  Args:
    p_logits, q_logits: [B, K].

  Returns:
    [B].

  Source: CO2, L_con.
  """
  chex.assert_rank([p_logits, q_logits], 2)
  chex.assert_equal_shape([p_logits, q_logits])
  p, q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
  return jnp.sum((jnp.exp(p) - jnp.exp(q)) * (p - q), axis=-1) / 2


def nt_xent(views: jax.Array, valid: jax.Array, temperature: float, reduction: str = 'mean') -> jax.Array:
  """Contrast of each view with all other views of the batch: normalised temperature-scaled cross entropy.

  ℓ(i, j) = −log [e^{x̄ᵢᵀx̄ⱼ/τ} / Σ_{k≠i} e^{x̄ᵢᵀx̄ₖ/τ}]

  Args:
    views: [B, 2, D], normalised here.
    valid: bool [B]; an invalid image is not a negative either.
    temperature: τ.
    reduction: over the two orders, 'mean' or 'sum'.

  Returns:
    [B], the mean or the sum of ℓ over both orders of the two views.

  Source: SimCLR (Chen et al. 2020), Eq. 1; its Algorithm 1 has the mean, its public code the sum.
  """
  chex.assert_shape(views, (None, 2, None))
  chex.assert_shape(valid, (len(views),))
  unit = normalise(views)
  flat = unit.reshape(-1, unit.shape[-1])
  logits = jnp.matmul(flat, flat.T, precision=_HIGHEST) / temperature
  others = ~jnp.eye(len(flat), dtype=bool) & jnp.repeat(valid, views.shape[1])[None]
  normaliser = jax.nn.logsumexp(jnp.where(others, logits, MASKED), axis=1).reshape(views.shape[:2])
  positives = jnp.sum(unit * unit[:, ::-1], axis=-1) / temperature
  return (jnp.sum if reduction == 'sum' else jnp.mean)(normaliser - positives, axis=1)


def negative_cosine(predictions: jax.Array, targets: jax.Array) -> jax.Array:
  """‖p̄ − z̄‖² = 2 − 2 p̄ᵀz̄.

  Args:
    predictions, targets: [..., D], normalised here.

  Source: BYOL (Grill et al. 2020), Eq. 2.
  """
  chex.assert_equal_shape([predictions, targets])
  return 2 - 2 * jnp.sum(normalise(predictions) * normalise(targets), axis=-1)


def queue_uniformity(queries: jax.Array, valid: jax.Array, key_logits: jax.Array, t: float) -> jax.Array:
  """Log of the mean of e^{−t ‖q − y‖²} over pairs of a query q with a key y of the queue or another query.

  Args:
    queries: [B, D] of unit norm; valid: bool [B].
    key_logits: [B, K], 2t·q·k, so that e^{key_logits − 2t} is the kernel; `MASKED` for pairs that do not
      count.
    t: the inverse width of the kernel.

  Returns:
    [], at most 0.

  Source: Wang and Isola (2020), Eq. 3, with a queue: one mean over the B·K + B(B − 1)/2 pairs.
  """
  chex.assert_rank([queries, valid, key_logits], [2, 1, 2])
  chex.assert_equal_shape_prefix([queries, valid, key_logits], 1)
  pairs = jnp.matmul(queries, queries.T, precision=_HIGHEST) * (2 * t)
  later = jnp.triu(jnp.ones(pairs.shape, bool), 1) & valid[:, None] & valid[None]
  kernels = [jnp.where(valid[:, None], key_logits, MASKED), jnp.where(later, pairs, MASKED)]
  total = jnp.logaddexp(*(jax.nn.logsumexp(kernel) for kernel in kernels))
  count = sum(jnp.sum(kernel > MASKED / 2) for kernel in kernels)
  return total - 2 * t - jnp.log(jnp.maximum(count, 1))
