"""The hardest classes equal a brute force in float64, whatever the mesh."""
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import collective_sizes

from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.losses import hardest

# Several chunks, of which the last is short, and blocks of queries that do not divide a device's rows.
NUM_INSTANCES, DIM, BATCH = 1300, 16, 24


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(hardest, '_CHUNK_SIZE', 512)


def padded(rows, mesh):
  """The rows with copies of the first ones as padding: a padded row that is picked is a wrong answer."""
  size = -(-len(rows) // (8 * mesh.size)) * 8 * mesh.size
  return jax.device_put(np.resize(rows, (size, rows.shape[1])), meshes.batch_sharding(mesh))


@functools.cache
def jitted(function, num_instances, k, mesh, dtype):
  """One for all tests, so that each shape is compiled once."""
  return jax.jit(functools.partial(function, num_instances=num_instances, k=k, mesh=mesh, dtype=dtype))


def find_table(rows, k, mesh, dtype=jnp.float32):
  return np.asarray(jitted(hardest.table, len(rows), k, mesh, dtype)(padded(rows, mesh)))[:len(rows)]


def find_for_batch(rows, k, mesh, ids, dtype=jnp.float32):
  ids = jax.device_put(ids, meshes.batch_sharding(mesh))
  return np.asarray(jitted(hardest.for_batch, len(rows), k, mesh, dtype)(padded(rows, mesh), ids))


def cosines(rows):
  """In float64, −inf of each row with itself."""
  unit = rows.astype(np.float64)
  unit /= np.linalg.norm(unit, axis=1, keepdims=True)
  values = unit @ unit.T
  np.fill_diagonal(values, -np.inf)
  return values


def assert_hardest(found, rows, ids, atol=1e-6):
  """The found are different classes in the order of their cosines, and none left out has a larger one."""
  values = cosines(rows)[ids]
  assert found.dtype == np.int32
  assert found.min() >= 0
  assert found.max() < len(rows)
  assert all(len(set(row)) == len(row) for row in found)
  k = found.shape[1]
  expected = -np.sort(np.partition(-values, k - 1, axis=1)[:, :k], axis=1)
  np.testing.assert_allclose(np.take_along_axis(values, found, axis=1), expected, rtol=0, atol=atol)


def random_rows(num_instances=NUM_INSTANCES, dim=DIM, seed=0):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(num_instances, dim)) * rng.uniform(0.1, 3, (num_instances, 1))).astype(np.float32)


def clustered_rows():
  """Each class's hardest lie beside it, so that all of them are on one device."""
  rng = np.random.default_rng(1)
  centres = np.repeat(rng.normal(size=(NUM_INSTANCES // 50, DIM)), 50, axis=0)
  return (centres + 0.05 * rng.normal(size=(NUM_INSTANCES, DIM))).astype(np.float32)


def ever_harder_rows():
  """Rows that close in on one direction: the later the chunk, the more of it enters; few of the others do."""
  rows = random_rows(seed=2)
  rows[:, 0] += np.linspace(0, 20, NUM_INSTANCES)
  return rows


ROWS = {'random': random_rows, 'clustered': clustered_rows, 'ever harder': ever_harder_rows,
        'ever easier': lambda: ever_harder_rows()[::-1].copy()}


@pytest.mark.slow
@pytest.mark.parametrize('k', [1, 40])
@pytest.mark.parametrize('kind', ROWS)
def test_table_equals_brute_force(mesh, kind, k):
  rows = ROWS[kind]()
  assert_hardest(find_table(rows, k, mesh), rows, np.arange(NUM_INSTANCES))


@pytest.mark.slow
@pytest.mark.parametrize('k', [1, 40])
@pytest.mark.parametrize('kind', ROWS)
def test_for_batch_equals_brute_force_with_ids_that_repeat(mesh, kind, k):
  rows = ROWS[kind]()
  ids = np.random.default_rng(3).integers(0, NUM_INSTANCES, BATCH).astype(np.int32)
  ids[-5:] = ids[0], NUM_INSTANCES - 1, 0, ids[0], NUM_INSTANCES - 1
  assert_hardest(find_for_batch(rows, k, mesh, ids), rows, ids)


@pytest.mark.slow
@pytest.mark.parametrize('num_instances', [2, 61, 700])
def test_all_the_others_can_be_asked_for(mesh, num_instances):
  rows, ids = random_rows(num_instances), np.arange(BATCH, dtype=np.int32) % num_instances
  found = find_table(rows, num_instances - 1, mesh)
  assert_hardest(found, rows, np.arange(num_instances))
  assert_hardest(find_for_batch(rows, num_instances - 1, mesh, ids), rows, ids)


@pytest.mark.slow
@pytest.mark.parametrize('dim', [DIM, 700])
def test_one_and_eight_devices_find_the_same_in_the_same_order(mesh8, dim):
  rows, ids = random_rows(dim=dim), np.arange(0, NUM_INSTANCES, NUM_INSTANCES // BATCH, np.int32)[:BATCH]
  one = meshes.make_mesh(devices=jax.devices()[:1])
  np.testing.assert_array_equal(find_table(rows, 40, mesh8), find_table(rows, 40, one))
  np.testing.assert_array_equal(find_for_batch(rows, 40, mesh8, ids), find_for_batch(rows, 40, one, ids))


@pytest.mark.slow
def test_a_mesh_of_two_axes_finds_the_same(mesh8):
  rows, ids = random_rows(), np.arange(BATCH, dtype=np.int32)
  mesh = meshes.make_mesh({'host': 2, 'device': 4})
  np.testing.assert_array_equal(find_table(rows, 40, mesh), find_table(rows, 40, mesh8))
  np.testing.assert_array_equal(find_for_batch(rows, 40, mesh, ids), find_for_batch(rows, 40, mesh8, ids))


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2 ** 32 - 1), distinct=st.integers(1, 60))
def test_equal_rows_come_in_the_order_of_their_ids(mesh8, seed, distinct):
  """Every row is one of a few, so that most cosines are equal to others."""
  rng = np.random.default_rng(seed)
  few = random_rows(distinct, seed=seed)
  of_few = cosines(few)
  np.fill_diagonal(of_few, 1)
  kinds = rng.integers(0, distinct, NUM_INSTANCES)
  rows, ids = few[kinds], rng.integers(0, NUM_INSTANCES, BATCH).astype(np.int32)
  by_kind = np.argsort(-of_few[:, kinds], axis=1, kind='stable')[:, :41]
  expected = np.stack([[j for j in by_kind[kind] if j != own][:40] for own, kind in enumerate(kinds)])
  # Where float32 cannot tell two of the few apart, their order says nothing.
  ranked = -np.sort(-of_few, axis=1)
  clear = np.all(ranked[:, :-1] - ranked[:, 1:] > 1e-6, axis=1)[kinds]
  for mesh in (mesh8, meshes.make_mesh(devices=jax.devices()[:1])):
    np.testing.assert_array_equal(find_table(rows, 40, mesh)[clear], expected[clear])
    found = find_for_batch(rows, 40, mesh, ids)
    np.testing.assert_array_equal(found[clear[ids]], expected[ids][clear[ids]])


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_factors_of_half_precision_find_nearly_the_same(mesh8, dtype):
  rows, ids = random_rows(), np.arange(BATCH, dtype=np.int32)
  atol = 4 * jnp.finfo(dtype).eps
  assert_hardest(find_table(rows, 40, mesh8, dtype), rows, np.arange(NUM_INSTANCES), atol)
  assert_hardest(find_for_batch(rows, 40, mesh8, ids, dtype), rows, ids, atol)


@pytest.mark.parametrize(('dtype', 'precision'), [(jnp.float32, 'HIGHEST'), (jnp.bfloat16, 'DEFAULT')])
def test_products_of_float32_are_asked_for_in_full(mesh8, dtype, precision):
  """Else a TPU or a GPU would round the factors."""
  rows = padded(random_rows(61), mesh8)
  for find, *ids in ((hardest.table,), (hardest.for_batch, np.zeros(8, np.int32))):
    text = jitted(find, 61, 3, mesh8, dtype).lower(rows, *ids).as_text()
    products = re.findall(r'dot_general.* precision = \[(\w+), (\w+)\]', text)
    assert set(products) == {(precision, precision)}


@pytest.mark.parametrize('num_instances', [2 ** 24, 1_281_167, 65_536])
def test_no_more_than_a_few_columns_are_selected_from_at_once(num_instances, monkeypatch):
  monkeypatch.undo()
  width, k = hardest._chunk_size(num_instances), 100
  program = jax.make_jaxpr(lambda values: hardest._largest(values, k))(jnp.zeros((1, width)))
  columns = [call.invars[0].aval.shape[1] for call in program.eqns if call.primitive.name == 'top_k']
  assert len(columns) > 1
  assert max(columns) <= 12 * k


def compiled(function, mesh, num_instances, dim, k, *ids):
  """Compiled from shapes alone, with the chunks that are used outside these tests."""
  sharding = meshes.batch_sharding(mesh)
  weights = jax.ShapeDtypeStruct((num_instances, dim), jnp.float32, sharding=sharding)
  ids = [jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for shape in ids]
  find = functools.partial(function, num_instances=num_instances, k=k, mesh=mesh)
  return jax.jit(find).lower(weights, *ids).compile()


def test_memory_of_a_table_is_its_entries_a_chunk_and_a_block(mesh8, monkeypatch):
  monkeypatch.undo()
  num_instances, dim, k = 2 ** 20, 128, 100
  program = compiled(hardest.table, mesh8, num_instances, dim, k)
  entries = num_instances // 8 * k
  chunk, block = hardest._CHUNK_SIZE * dim, hardest._CHUNK_SIZE * 64
  assert program.memory_analysis().temp_size_in_bytes <= 4 * (2 * entries + 2 * chunk + 2 * block)
  assert max(collective_sizes(program.as_text())) == chunk


@pytest.mark.slow
def test_for_batch_keeps_and_communicates_no_more_than_the_batch(mesh8, monkeypatch):
  monkeypatch.undo()
  num_instances, dim, k, batch = 2 ** 24, 128, 100, 256
  program = compiled(hardest.for_batch, mesh8, num_instances, dim, k, (batch,))
  chunk, block = hardest._CHUNK_SIZE * dim, hardest._CHUNK_SIZE * 64
  assert program.memory_analysis().temp_size_in_bytes <= 4 * (2 * chunk + 2 * block + 8 * batch * k)
  assert max(collective_sizes(program.as_text())) <= batch * max(dim, k)


@pytest.mark.parametrize('k', [0, 61])
def test_a_number_of_classes_that_there_is_not_is_refused(mesh8, k):
  with pytest.raises(UserError, match=rf'config\.smoothing\.k is {k}\b.* 60 others'):
    find_table(random_rows(61), k, mesh8)
  with pytest.raises(UserError, match=rf'config\.smoothing\.k is {k}\b.* 60 others'):
    find_for_batch(random_rows(61), k, mesh8, np.zeros(8, np.int32))
