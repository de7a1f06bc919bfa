"""Names of hardware, what is said of it, and the compilers where they are installed."""
import jax
import jax.numpy as jnp
import pytest
from support import devices_or_skip

from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.hardware import program_cost, topologies

NAMES = {'64xV100-32GB': 64, '8xA100-80GB': 8, '8xH100-80GB': 8, '8xH200-141GB': 8, '12xV100-16GB': 12,
         'v4:4x4x4': 64, 'v5e:8x8': 64, 'v5p:2x2x4': 16, 'v6e:4x4': 16}


@pytest.mark.parametrize(('name', 'platform', 'count', 'hosts', 'memory'), [
  ('64xV100-32GB', 'cuda', 64, 8, 32), ('8xV100-16GB', 'cuda', 8, 1, 16), ('4xA100-40GB', 'cuda', 4, 1, 40),
  ('12xH100-80GB', 'cuda', 12, 2, 80), ('v4:4x4x4', 'tpu', 64, 1, 32), ('v5e:8x8', 'tpu', 64, 1, 16),
  ('v5p:4x4x8', 'tpu', 128, 1, 95), ('v6e:16x16', 'tpu', 256, 1, 32)])
def test_a_name_says_how_many_devices_of_what(name, platform, count, hosts, memory):
  found = topologies.parse(name)
  assert (found.platform, found.num_devices, found.hosts) == (platform, count, hosts)
  assert found.hardware.memory == memory * 2**30
  assert found.limit_bytes == int(0.92 * memory * 2**30)


def test_the_devices_of_this_machine_share_its_memory():
  one, eight = topologies.parse('cpu:1'), topologies.parse('cpu:8')
  assert one.hardware.memory // 8 == eight.hardware.memory


@pytest.mark.parametrize('name', ['', 'V100-32GB', '64xV100', '0xV100-32GB', '8xV100-32', '8xB200-192GB',
                                  'v9:2x2', 'v5e', 'v5e:8x', 'v5e:0x8', 'cpu', 'cpu:0', 'cpu:2x2', 'gpu:8'])
def test_a_wrong_name_is_answered_with_what_there_is(name):
  with pytest.raises(UserError, match=r'64xV100-32GB, with V100-16GB, .*H100-80GB.* v5e:8x8 .*cpu:COUNT'):
    topologies.parse(name)


@pytest.mark.parametrize(('name', 'example'), [('v4:4x4', 'v4:4x4x4'), ('v5e:4x4x4', 'v5e:4x4')])
def test_a_slice_with_too_few_or_too_many_sides(name, example):
  with pytest.raises(UserError, match=f'such as {example}\\.'):
    topologies.parse(name)


@pytest.mark.parametrize(('name', 'extra'), [('8xV100-32GB', 'plan-gpu'), ('v5e:2x2', 'tpu')])
def test_a_missing_compiler_names_the_extra_to_install(name, extra, monkeypatch):
  monkeypatch.setattr(topologies, '_is_installed', lambda module: False)
  with pytest.raises(UserError, match=rf"not installed: pip install 'conic_jax\[{extra}\]'"):
    topologies.devices(topologies.parse(name))


def test_more_cpu_devices_than_there_are():
  with pytest.raises(UserError, match='--xla_force_host_platform_device_count=9'):
    topologies.devices(topologies.parse('cpu:9'))


@pytest.mark.parametrize('name', topologies.GPUS)
def test_a_gpus_target_is_what_was_said_of_it(name):
  found = topologies.parse(f'8x{name}')
  text = topologies.target_config(found)
  major = {'V': 7, 'A': 8, 'H': 9}[name[0]]
  for field in (f'major: {major}  minor: 0', f'device_memory_size: {found.hardware.memory}\n',
                f'device_description_str: "NVIDIA {name}"'):
    assert field in text
  assert text.count('{') == text.count('}')


def test_the_compute_type_is_the_topologys_not_this_machines():
  class Device:
    platform, compute_capability = 'gpu', '7.0'
  assert meshes.compute_dtype('auto', Device()) == jnp.float16
  Device.compute_capability = '9.0'
  assert meshes.compute_dtype('auto', Device()) == jnp.bfloat16
  Device.platform = 'tpu'
  assert meshes.compute_dtype('auto', Device()) == jnp.bfloat16
  assert meshes.compute_dtype('float32', Device()) == meshes.compute_dtype('auto') == jnp.float32


# ---- With the compilers -------------------------------------------------------------------------


@pytest.mark.parametrize(('name', 'count'), NAMES.items())
def test_the_compiler_knows_the_topology(name, count):
  devices = devices_or_skip(name)
  assert len(devices) == count
  assert meshes.make_mesh(devices=devices).size == count


def test_a_slice_that_the_compiler_does_not_know():
  devices_or_skip('v5e:2x2')
  with pytest.raises(UserError, match='the compiler knows no such topology'):
    topologies.devices(topologies.parse('v5e:3x5'))


@pytest.mark.parametrize(('name', 'platform'), [('4xV100-32GB', 'cuda'), ('v5e:2x2', 'tpu')])
def test_products_in_a_loop_are_counted_on_every_compiler(name, platform):
  mesh = meshes.make_mesh(devices=devices_or_skip(name))

  def local(a, b):
    looped = jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ b), a)
    return jax.lax.psum(looped, 'data')

  function = jax.shard_map(local, mesh=mesh, in_specs=(meshes.split(mesh), jax.sharding.PartitionSpec()),
                           out_specs=jax.sharding.PartitionSpec())
  dtype = meshes.compute_dtype('auto', mesh.devices.flat[0])
  shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((512, 128), (128, 128))]
  text = jax.jit(function).trace(*shapes).lower(lowering_platforms=(platform,)).compile().as_text()
  found = program_cost.analyse(text)
  assert found.unknown_loops == 0
  assert sum(k.count * k.half_flops for k in found.kernels) == found.flops == 5 * 2 * 128 * 128 * 128
  assert [each.kind for each in found.collectives] == ['all-reduce']
