"""The mesh, the partition rules and the batch's way onto it."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes


def test_one_axis_over_all_devices_is_the_default(mesh8):
  assert mesh8.shape == {'data': 8}


def test_an_axis_may_be_what_is_left():
  assert meshes.make_mesh({'host': 2, 'chip': -1}).shape == {'host': 2, 'chip': 4}


def test_a_mesh_that_does_not_cover_the_devices_is_refused():
  with pytest.raises(UserError, match='does not cover the 8 devices'):
    meshes.make_mesh({'data': 3})


@pytest.mark.parametrize(('size', 'nearest'), [(100, '96 and 104'), (3, '8'), (0, '8')])
def test_a_batch_that_does_not_split_names_the_nearest(mesh8, size, nearest):
  with pytest.raises(UserError, match=rf'nearest that can are {nearest}\.'):
    meshes.check_batch_size(size, mesh8)


@pytest.mark.parametrize('axes', [{'data': 8}, {'host': 2, 'chip': 4}])
def test_one_process_reads_the_whole_batch_and_gets_it_back(axes):
  mesh = meshes.make_mesh(axes)
  rows = meshes.process_rows(mesh, 16)
  np.testing.assert_array_equal(rows, np.arange(16))
  batch = meshes.to_global({'id': rows, 'views': (np.ones((16, 2)),)}, mesh)
  assert batch['id'].sharding.shard_shape((16,)) == (2,)
  np.testing.assert_array_equal(batch['id'], rows)


def test_rules_are_searched_in_paths_and_the_rest_is_replicated(mesh8):
  tree = {'rows': {'weights': jnp.zeros((8, 2))}, 'step': jnp.zeros(())}
  shardings = meshes.shardings(tree, [('^rows/', PartitionSpec('data'))], mesh8)
  assert shardings['rows']['weights'].spec == PartitionSpec('data')
  assert shardings['step'].spec == PartitionSpec()


def test_compute_dtype():
  assert meshes.compute_dtype('auto') == jnp.float32 == meshes.compute_dtype('float32')
  assert meshes.compute_dtype('bfloat16') == jnp.bfloat16
  with pytest.raises(UserError, match='auto, float32, bfloat16, float16'):
    meshes.compute_dtype('float64')
  assert jax.default_backend() == 'cpu'
