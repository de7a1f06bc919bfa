"""What methods make of a batch's validity takes one axis."""
from support import refuses

from conic_jax.methods import inscon, instance


def test_wrong_shapes():
  refuses(inscon.of_mosaics, (8, 1))
  refuses(lambda valid: instance.mean_weights(valid, 2), (8, 1))
