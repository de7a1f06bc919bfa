"""`python -m conic_jax` is the command `conic`."""
from conic_jax.console import command

if __name__ == '__main__':
  command()
