"""conic_jax: self-supervised image representations by instance discrimination."""

__version__ = '0.1.0'
