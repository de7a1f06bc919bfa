"""Products with factors in the compute type and sums in float32, in kernels too."""
from typing import Any

import jax
import jax.numpy as jnp


def contract(a: jax.Array, b: jax.Array, axes: tuple[int, int], dtype: Any) -> jax.Array:
  """The product over an axis of each, with factors in the compute type and sums in float32."""
  precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
  return jax.lax.dot_general(a.astype(dtype), b.astype(dtype), (((axes[0],), (axes[1],)), ((), ())),
                             precision=precision, preferred_element_type=jnp.float32)


def sum_products(terms: jax.Array, vectors: jax.Array, dtype: Any) -> jax.Array:
  """terms [A, B] times vectors [B, D], in the compute type.

  float16's smallest number is larger than many probabilities: there each row of terms is scaled to at most
  one before the cast, and scaled back in float32 after the product.
  """
  if dtype != jnp.float16:
    return contract(terms, vectors, (1, 0), dtype)
  largest = jnp.max(jnp.abs(terms), axis=1, keepdims=True)
  largest = jnp.where(largest > 0, largest, 1)
  return contract(terms / largest, vectors, (1, 0), dtype) * largest
