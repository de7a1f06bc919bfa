"""Classes drawn uniformly in each step, without an array of all N."""
import chex
import jax
import jax.numpy as jnp

from conic_jax import permutation


def drawn(classes: jax.Array, key: jax.Array, num_instances: int, num_drawn: int) -> jax.Array:
  """Whether each class is among those drawn without replacement from all N.

  A keyed bijection of 0 … N − 1 gives every class a position; the classes at the first positions are drawn.
  So each device knows which of its own rows are drawn, and exactly `num_drawn` are drawn in total.

  Args:
    classes: int32 [C]; those outside [0, N) are not drawn.
    key: this step's key.
    num_instances: N, below 2^31.
    num_drawn: how many to draw, at most N.

  Returns:
    bool [C].

  Source: One-Million, Table 3 ("sampled instance classification"; that the draw is uniform and new in every
  step is our reading).
  """
  chex.assert_rank(classes, 1)
  keys = jax.random.bits(key, (permutation.HALF_ROUNDS,), jnp.uint32)
  inside = (classes >= 0) & (classes < num_instances)
  start = jnp.where(inside, classes, 0)

  def walk(places):
    return jnp.where(places < num_instances, places, permutation.permuted(places, num_instances, keys))

  places = jax.lax.while_loop(lambda places: jnp.any(places >= num_instances), walk,
                              permutation.permuted(start, num_instances, keys))
  return inside & (places < num_drawn)
