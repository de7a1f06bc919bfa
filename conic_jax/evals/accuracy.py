"""How well logits tell classes apart."""
import jax
import jax.numpy as jnp

TOP = (1, 5)


def hits(logits: jax.Array, labels: jax.Array, counted: jax.Array) -> jax.Array:
  """How many images have their class among the first 1 and 5.

  Ties count against the classifier, and logits that are not all finite hit nothing.

  Args:
    logits: float32 [B, C].
    labels: int32 [B].
    counted: bool [B], the images that count.

  Returns:
    int32 [2].
  """
  truth = jnp.take_along_axis(logits, labels[:, None], axis=1)
  rivals = jnp.sum(logits >= truth, axis=1) - 1
  counted &= jnp.all(jnp.isfinite(logits), axis=1)
  return jnp.stack([jnp.sum(counted & (rivals < top)) for top in TOP])


def confusion(predicted: jax.Array, labels: jax.Array, counted: jax.Array, num_classes: int) -> jax.Array:
  """How many images of class i are taken for class j, int32 [C, C].

  Args:
    predicted, labels: int32, of one shape.
    counted: bool of that shape, what counts.
    num_classes: C.
  """
  pairs = jnp.zeros((num_classes, num_classes), jnp.int32)
  return pairs.at[jnp.where(counted, labels, 0), predicted].add(counted.astype(jnp.int32))
