"""config.kernels reaches every softmax of every method, those of the memories included."""
import jax.numpy as jnp
import pytest
from support import tiny_method

from conic_jax import methods
from conic_jax.hardware import mesh as meshes
from conic_jax.losses import partitioned

WITH_A_SOFTMAX = {'conic', 'conic_s', 'data_parallel', 'exemplar', 'instdisc', 'one_million', 'pic'}


def softmaxes(config):
  """The settings of the softmax in a method and in its memories."""
  method = methods.make(config, 37, meshes.make_mesh(), jnp.dtype(jnp.float32))
  owners = [method, *method.memories.values()]
  return [softmax for owner in owners if isinstance(softmax := getattr(owner, 'softmax', None),
                                                    partitioned.Softmax)]


@pytest.mark.parametrize('name', methods.available())
def test_the_flag_reaches_the_softmax(name, tiny_config):
  config = tiny_method(tiny_config, name)
  default = softmaxes(config)
  assert bool(default) == (name in WITH_A_SOFTMAX)
  assert all(softmax.kernel == '' for softmax in default)
  config.kernels = False
  assert all(softmax.kernel == 'xla' for softmax in softmaxes(config))


def test_a_config_without_the_field_takes_what_suits_the_device(tiny_config):
  with tiny_config.unlocked():
    del tiny_config.kernels
  assert {softmax.kernel for softmax in softmaxes(tiny_config)} == {''}
