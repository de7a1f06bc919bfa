"""Refuses weights that are no numbers."""
from typing import Any

import jax
import numpy as np

from conic_jax.errors import UserError, listed


def check_finite(variables: Any, origin: str, remedy: str) -> None:
  """Checks weights before anything is concluded from them.

  Args:
    variables: a tree of arrays.
    origin: where they are from, for the message.
    remedy: what to do.

  Raises:
    UserError: naming the arrays with NaN or infinite values.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
  bad = [jax.tree_util.keystr(path, simple=True, separator='.') for path, leaf in leaves
         if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all()]
  if bad:
    raise UserError(f'{origin} has weights that are NaN or infinite ({listed(bad, 3)}): {remedy}')
