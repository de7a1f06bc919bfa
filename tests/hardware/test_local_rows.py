"""Rows written and read where they lie, against a dict."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import collective_sizes

from conic_jax.hardware import local_rows
from conic_jax.hardware import mesh as meshes

DIM, BATCH = 4, 8


@pytest.mark.parametrize('is_split', [True, False], ids=['split', 'copied'])
def test_rows_are_written_where_they_lie(mesh, is_split):
  """Places are from −8 to 31 of 24 rows: what lies outside is dropped. No row moves to another device."""
  rng = np.random.default_rng(0)
  sharding = meshes.batch_sharding(mesh) if is_split else meshes.replicated(mesh)
  rows = jax.device_put(jnp.zeros((24, DIM)), sharding)
  expected = np.zeros((24, DIM), np.float32)
  placed = {} if is_split else {'is_split': False}  # Split unless told otherwise.
  write = jax.jit(functools.partial(local_rows.write, mesh=mesh, **placed))
  batch = (jax.device_put(part, meshes.batch_sharding(mesh))
           for part in (np.arange(BATCH, dtype=np.int32), np.zeros((BATCH, DIM), np.float32)))
  assert max(collective_sizes(write.lower(rows, *batch).compile().as_text()), default=0) <= BATCH * DIM
  for _ in range(100):
    places, values = np.int32(rng.permutation(40)[:BATCH] - 8), np.float32(rng.normal(size=(BATCH, DIM)))
    rows = jax.block_until_ready(write(rows, places, values))
    inside = (places >= 0) & (places < 24)
    expected[places[inside]] = values[inside]
    np.testing.assert_array_equal(rows, expected)
  assert rows.sharding.is_equivalent_to(sharding, 2)


def test_rows_are_read_where_they_lie(mesh):
  """Indices outside give zeros."""
  rows = np.random.default_rng(0).normal(size=(24, DIM)).astype(np.float32)
  indices = np.array([0, 23, 5, -1, 24, 11, 11, 2**31 - 1], np.int32)
  split = meshes.batch_sharding(mesh)
  found = jax.jit(functools.partial(local_rows.read, mesh=mesh))(
    jax.device_put(rows, split), jax.device_put(indices, split))
  inside = (indices >= 0) & (indices < 24)
  np.testing.assert_array_equal(found, np.where(inside[:, None], rows[np.where(inside, indices, 0)], 0))
  assert found.sharding.is_equivalent_to(split, 2)
