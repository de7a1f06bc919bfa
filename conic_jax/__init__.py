"""conic_jax: learning image representations without labels by telling every image apart."""

__version__ = '0.1.0'
