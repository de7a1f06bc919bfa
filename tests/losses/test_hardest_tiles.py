"""The approximate search finds nearly what the exact one does, and only classes that may be found."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import collective_sizes

from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.losses import cells, hardest, hardest_tiles

# The last tile is filled in part; with eight devices some tiles are empty.
NUM_INSTANCES, DIM, K, TEMPERATURE = 1301, 32, 12, 0.15

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
  """Many tiles, several chunks of them and several comparisons in each."""
  for name, value in (('_TILE', 16), ('_LEAST', 2), ('_CHUNK', 32), ('_AT_ONCE', 4)):
    monkeypatch.setattr(hardest_tiles, name, value)
  monkeypatch.setattr(cells, '_BLOCK', 64)
  monkeypatch.setattr(cells, '_EXCHANGED', 256)
  monkeypatch.setattr(hardest, '_CHUNK_SIZE', 512)


def clustered_rows(num_instances=NUM_INSTANCES):
  """Classes of 26 rows in random order, whose norms differ."""
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(50, DIM))[rng.integers(0, 50, num_instances)]
  rows = centres + 0.5 * rng.normal(size=(num_instances, DIM))
  return (rows * rng.uniform(0.1, 3, (num_instances, 1))).astype(np.float32)


def padded(rows, mesh):
  """Copies of the first rows as padding: they are the hardest of those rows, if they are found."""
  size = -(-len(rows) // (8 * mesh.size)) * 8 * mesh.size
  return jax.device_put(np.resize(rows, (size, rows.shape[1])), meshes.batch_sharding(mesh))


@functools.cache
def jitted(search, num_instances, k, mesh, one_of):
  """One for all tests; `one_of` is the setting that a test changes."""
  return jax.jit(functools.partial(search, num_instances=num_instances, k=k, mesh=mesh))


def find(rows, mesh, k=K, seed=0):
  search = jitted(hardest_tiles.table, len(rows), k, mesh, hardest_tiles._ONE_OF)
  return np.asarray(search(padded(rows, mesh), key=jax.random.key(seed)))[:len(rows)]


def exact(rows, mesh, k=K):
  return np.asarray(jitted(hardest.table, len(rows), k, mesh, None)(padded(rows, mesh)))[:len(rows)]


def cosines(rows, found):
  unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
  return np.einsum('nd,nkd->nk', unit, unit[found])


def assert_valid(found, num_instances):
  """Different classes of [0, N), never the own one."""
  assert found.dtype == np.int32
  assert found.min() >= 0
  assert found.max() < num_instances
  assert all(len({own, *row}) == len(row) + 1 for own, row in enumerate(found))


def test_nearly_all_of_the_mass_is_found_and_nothing_else(mesh):
  rows = clustered_rows()
  found, wanted = find(rows, mesh), exact(rows, mesh)
  assert_valid(found, NUM_INSTANCES)
  mine, theirs = cosines(rows, found), cosines(rows, wanted)
  assert np.all(np.diff(mine, axis=1) <= 1e-6), 'the hardest first'
  mass = np.exp(mine / TEMPERATURE).sum(axis=1) / np.exp(theirs / TEMPERATURE).sum(axis=1)
  assert mass.mean() > 0.97
  assert np.mean([len(np.intersect1d(*both)) / K for both in zip(found, wanted)]) > 0.93


def test_most_tiles_are_not_searched():
  plan = hardest_tiles.make_plan(NUM_INSTANCES, NUM_INSTANCES, K, 1)
  assert plan.searched * 5 < plan.filled


def test_the_same_key_finds_the_same(mesh8):
  rows = clustered_rows()
  first = find(rows, mesh8)
  np.testing.assert_array_equal(find(rows, mesh8), first)
  assert np.any(find(rows, mesh8, seed=1) != first)


def test_a_mesh_of_two_axes_finds_the_same(mesh8):
  rows = clustered_rows()
  np.testing.assert_array_equal(find(rows, meshes.make_mesh({'host': 2, 'device': 4})), find(rows, mesh8))


@pytest.mark.parametrize(('num_instances', 'k'), [(2, 1), (17, 16), (61, 60), (300, 299), (300, 40)])
def test_there_are_always_enough(mesh, num_instances, k):
  rows = clustered_rows(num_instances)
  assert_valid(find(rows, mesh, k), num_instances)


def test_all_tiles_find_the_hardest(mesh, monkeypatch):
  monkeypatch.setattr(hardest_tiles, '_ONE_OF', 1)
  rows = clustered_rows()
  np.testing.assert_allclose(cosines(rows, find(rows, mesh)), cosines(rows, exact(rows, mesh)), atol=1e-6)


def test_equal_rows_are_found_once_each(mesh):
  assert_valid(find(np.ones((300, DIM), np.float32), mesh, 40), 300)


def test_rows_of_any_device(mesh):
  rows = np.arange(64 * 3, dtype=np.float32).reshape(64, 3)
  places = np.random.default_rng(0).integers(-1, 70, 600).astype(np.int32)
  split = meshes.split(mesh)
  gather = jax.shard_map(functools.partial(cells.rows_at, mesh=mesh), mesh=mesh, in_specs=(split, split),
                         out_specs=split)
  inside = (places >= 0) & (places < 64)
  expected = np.where(inside[:, None], rows[np.clip(places, 0, 63)], 0)
  np.testing.assert_array_equal(jax.jit(gather)(rows, places), expected)


def test_centres_are_the_directions_of_their_rows(mesh):
  """Three far apart classes, and as many cells as the power of two above: none is shared by two classes."""
  rng = np.random.default_rng(0)
  classes = rng.integers(0, 3, 256)
  rows = np.eye(3, DIM, dtype=np.float32)[classes] + 0.01 * rng.normal(size=(256, DIM)).astype(np.float32)
  split = meshes.split(mesh)
  find_centres = jax.shard_map(
    lambda rows: cells.centres(rows, num_instances=256, num_cells=16, mesh=mesh, key=jax.random.key(0)),
    mesh=mesh, in_specs=split, out_specs=jax.sharding.PartitionSpec())
  centres = np.asarray(jax.jit(find_centres)(rows))
  np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, rtol=1e-5)
  assert np.all(centres[:, :3].max(axis=1) > 0.99)
  # Classes are together in the order.
  assert np.count_nonzero(np.diff(np.argmax(centres[:, :3], axis=1))) == 2


def test_order_of_points_on_an_arc():
  angles = np.random.default_rng(0).permutation(32) / 20
  points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
  ordered = np.asarray(jax.jit(cells.in_order)(points))
  steps = np.diff(np.arctan2(ordered[:, 1], ordered[:, 0])) * 20
  np.testing.assert_allclose(sorted(np.arctan2(ordered[:, 1], ordered[:, 0]) * 20), np.arange(32), atol=1e-3)
  assert np.abs(steps).mean() < 2.5


def test_memory_is_the_rows_the_entries_a_chunk_and_a_block(mesh8, monkeypatch):
  monkeypatch.undo()
  num_instances, dim, k = 2 ** 20, 128, 100
  weights = jax.ShapeDtypeStruct((num_instances, dim), jnp.float32, sharding=meshes.batch_sharding(mesh8))
  search = functools.partial(hardest_tiles.table, num_instances=num_instances, k=k, mesh=mesh8)
  program = jax.jit(search).lower(weights, key=jax.random.key(0)).compile()
  share, chunk = num_instances // 8, 65536
  most = share * (2 * dim + 4 * k) + 8 * num_instances + chunk * 4 * dim + 1024 * 2 * 8192
  assert program.memory_analysis().temp_size_in_bytes <= 4 * most
  assert max(collective_sizes(program.as_text())) <= chunk * dim


@pytest.mark.parametrize('k', [0, 61])
def test_a_number_of_classes_that_there_is_not_is_refused(mesh8, k):
  with pytest.raises(UserError, match=rf'config\.smoothing\.k is {k}\b.* 60 others'):
    find(clustered_rows(61), mesh8, k)
