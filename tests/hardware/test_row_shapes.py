"""Rows refuse indices and values of shapes that they do not promise to take."""
from support import refuses

from conic_jax.hardware import local_rows


def test_wrong_shapes(mesh8):
  refuses(lambda *arrays: local_rows.read(*arrays, mesh8), (64, 3), (8, 1))
  refuses(lambda *arrays: local_rows.write(*arrays, mesh8), (64, 3), (8,), (8, 1))
  refuses(lambda *arrays: local_rows.write(*arrays, mesh8, is_split=False), (64, 3), (8, 1), (8, 1, 3))
