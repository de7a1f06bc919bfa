"""Accuracy and confusion of a classifier."""
import chex
import jax
import jax.numpy as jnp

TOP = (1, 5)


def hits(logits: jax.Array, labels: jax.Array, counted: jax.Array) -> jax.Array:
  """Number of top-1 and top-5 hits.

  Ties count against the classifier; an image with non-finite logits counts as a miss.

  Args:
    logits: float32 [B, C].
    labels: int32 [B].
    counted: bool [B], the images to count.

  Returns:
    int32 [2].
  """
  chex.assert_rank([logits, labels, counted], [2, 1, 1])
  chex.assert_equal_shape_prefix([logits, labels, counted], 1)
  truth = jnp.take_along_axis(logits, labels[:, None], axis=1)
  rivals = jnp.sum(logits >= truth, axis=1) - 1
  counted &= jnp.all(jnp.isfinite(logits), axis=1)
  return jnp.stack([jnp.sum(counted & (rivals < top)) for top in TOP])


def confusion(predicted: jax.Array, labels: jax.Array, counted: jax.Array, num_classes: int) -> jax.Array:
  """Confusion matrix: number of images of class i predicted as class j, int32 [C, C].

  Args:
    predicted, labels: int32, of the same shape.
    counted: bool of that shape, the entries to count.
    num_classes: C.
  """
  chex.assert_equal_shape([predicted, labels, counted])
  pairs = jnp.zeros((num_classes, num_classes), jnp.int32)
  return pairs.at[jnp.where(counted, labels, 0), predicted].add(counted.astype(jnp.int32))
