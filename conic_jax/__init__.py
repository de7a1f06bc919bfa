"""conic_jax: self-supervised image representations by instance discrimination."""
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from conic_jax.api import Encoder, Run, load, pretrain

__version__ = '0.1.0'
__all__ = ['Encoder', 'Run', 'load', 'pretrain']


def __getattr__(name: str) -> Any:
  """Imports what takes seconds once it is used."""
  if name in __all__:
    from conic_jax.hardware.compiler import prepare_compiler
    prepare_compiler()
    from conic_jax import api
    return getattr(api, name)
  raise AttributeError(f"module 'conic_jax' has no attribute '{name}'")
