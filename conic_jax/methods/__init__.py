"""Methods: one file each, found by the config's name."""
import importlib
import pkgutil
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from conic_jax.errors import UserError
from conic_jax.extensions import own_part
from conic_jax.methods.method import Aux, DecomposedMethod, Method, check_positive

__all__ = ['Aux', 'DecomposedMethod', 'Method', 'available', 'make']


_NO_METHODS = ('method', 'instance', 'momentum', 'network')


def available() -> list[str]:
  """Names that `config.method` may have."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NO_METHODS)


def make(config: Any, num_instances: int, mesh: Mesh, dtype: jnp.dtype) -> Method:
  """Creates the method `config.method` with the `make` of conic_jax/methods/<name>.py or of your own module.

  Args:
    config: the whole config.
    num_instances: N, the images of the training set.
    mesh: the mesh.
    dtype: the compute type.

  Raises:
    UserError: for an unknown method, or incompatible settings.
  """
  make_method = own_part(config.method, 'make')
  if make_method is None and config.method not in available():
    raise UserError(f"config.method is '{config.method}'; available: {', '.join(available())}, or a module "
                    'of yours.')
  if 'temperature' in config:
    check_positive(config.temperature, 'config.temperature')
  make_method = make_method or importlib.import_module(f'{__name__}.{config.method}').make
  return make_method(config, num_instances, mesh, dtype)
