"""Eight CPU devices, strict ranks, and the mesh."""
import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'

import jax
import pytest

from conic_jax import mesh as meshes

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(params=[1, 8], ids=['1 device', '8 devices'])
def mesh(request):
  """A mesh over one device and one over eight."""
  return meshes.make_mesh(devices=jax.devices()[:request.param])


@pytest.fixture(scope='session')
def mesh8():
  """A mesh over eight devices."""
  return meshes.make_mesh()
