"""Classes drawn uniformly in each step, without an array of all N."""
import jax
import jax.numpy as jnp
import numpy as np

_HALF_ROUNDS = 8


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
  columns = int(np.ceil(np.sqrt(num_instances)))
  rows = -(-num_instances // columns)
  keys = jax.random.bits(key, (_HALF_ROUNDS,), jnp.uint32)
  inside = (classes >= 0) & (classes < num_instances)
  start = jnp.where(inside, classes, 0)

  def walk(places):
    return jnp.where(places < num_instances, places, _permuted(places, rows, columns, keys))

  places = jax.lax.while_loop(lambda places: jnp.any(places >= num_instances), walk,
                              _permuted(start, rows, columns, keys))
  return inside & (places < num_drawn)


def _permuted(values, rows, columns, keys):
  """A Feistel network on the grid rows × columns, a little larger than N."""
  left, right = values // columns, values % columns
  for left_key, right_key in keys.reshape(-1, 2):
    left = (left + _hash(right.astype(jnp.uint32) ^ left_key, rows)) % rows
    right = (right + _hash(left.astype(jnp.uint32) ^ right_key, columns)) % columns
  return left * columns + right


def _hash(x, below):
  """The 32-bit finaliser of MurmurHash3 (Appleby, public domain), as an int32 in [0, below)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85ebca6b)
  x = (x ^ (x >> 13)) * jnp.uint32(0xc2b2ae35)
  return ((x ^ (x >> 16)) % jnp.uint32(below)).astype(jnp.int32)
