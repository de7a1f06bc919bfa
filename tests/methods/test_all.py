"""What every method must hold, walked by name."""
import itertools
import json
import os
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clusters import finish, fork
from method_programs import (
  NUM_IMAGES,
  SCHEDULE,
  STEPS,
  Program,
  Setting,
  config_of_case,
  take_steps,
  without_colours,
)
from support import collective_sizes
from xla_flags import xla_flags

from conic_jax import methods
from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.models import mlp_of
from conic_jax.pretraining import train_step
from conic_jax.run.checkpoints import Checkpoints

pytestmark = pytest.mark.slow

# Copying the rows to every device, and adding their gradients up, is what data_parallel is about; byol and
# simclr keep nothing that grows; the others are as conic and conic_s.
PARTITIONED = [name for name in methods.available()
               if name not in ('data_parallel', 'byol', 'simclr', 'exemplar', 'pic', 'co2', 'align_uniform')]


# Each method, conic_s with each of its stores.
CASES = [*(name for name in methods.available() if name != 'conic_s'),
         *(f'conic_s {store}' for store in ('device', 'host', 'disk'))]


@pytest.fixture
def method_config(image_folder, tmp_path, name):
  """The tiny network with the settings that the method's own config has beside ConIC's."""
  return config_of_case(image_folder, tmp_path / 'run', name)


@pytest.fixture(scope='module')
def programs():
  """Makes programs, each once: to trace and compile them takes most of the time."""
  made = {}

  def program(config, mesh, dtype):
    store = config.classifier.get('store') if 'classifier' in config else None
    key = config.method, store, mesh.size, dtype
    if key not in made:
      if dtype == jnp.float32:
        made[key] = Program(config, mesh, dtype)
      else:
        made[key] = Program(without_colours(config), mesh, dtype)
        made[key].begin_as(program(config, mesh, jnp.dtype(jnp.float32)), dtype)
    return made[key]
  return program


@pytest.fixture
def settings(method_config, programs, tmp_path):
  """Makes a `Setting` on a mesh; all are closed at the end."""
  made = []

  def make(mesh, dtype=jnp.float32):
    made.append(Setting(programs(method_config, mesh, jnp.dtype(dtype)), tmp_path / f'store{len(made)}'))
    return made[-1]
  yield make
  for setting in made:
    for host in setting.hosts.values():
      host.close()


@pytest.mark.parametrize('name', methods.available())
def test_one_and_eight_devices_agree_and_keep_their_shardings(settings, name):
  results = []
  for devices in (1, 8):
    setting = settings(meshes.make_mesh(devices=jax.devices()[:devices]))
    metrics = [setting.take(step) for step in range(2)]
    chex.assert_tree_all_finite(metrics)
    jax.tree.map(lambda leaf, want: chex.assert_equal(leaf.sharding.is_equivalent_to(want, leaf.ndim), True),
                 setting.state, setting.shardings)
    kept = [leaf for leaf in jax.tree.leaves(setting.state.memories)
            if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    results.append(jax.device_get((metrics, kept, setting.state.params)))
  chex.assert_trees_all_close(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(('name', 'dtype'), [
  ('conic', jnp.float16), *((name, jnp.float32) for name in PARTITIONED)])
def test_no_collective_of_the_whole_step_grows_with_what_is_kept(method_config, programs, name, dtype, mesh8):
  """4,096 images or keys need the communication of 37: rows and queues stay where they are."""
  dtype, many = jnp.dtype(dtype), 4096
  few = programs(method_config, mesh8, dtype)
  queues = {'queue.size': many, 'cell.queue': 9 * many}
  method_config.update_from_flattened_dict(
    {field: size for field, size in queues.items() if field.split('.')[0] in method_config})
  num_images = NUM_IMAGES if 'queue' in method_config else many
  larger = Program(without_colours(method_config), mesh8, dtype, num_images)
  largest = [max(collective_sizes(program.step.as_text())) for program in (few, larger)]
  assert largest[0] == largest[1]


@pytest.mark.parametrize('name', methods.available())
def test_a_step_that_overflows_changes_nothing_that_learns(settings, name, mesh8):
  setting = settings(mesh8, jnp.float16)
  setting.take(0)
  before = setting.state
  infinite = before.params | {'head': jax.tree.map(lambda leaf: leaf * jnp.inf, before.params['head'])}
  setting.state = before.replace(params=infinite)
  assert setting.take(1)['overflow']
  after = setting.state
  chex.assert_trees_all_equal(after.params['encoder'], before.params['encoder'])
  chex.assert_trees_all_equal(after.batch_stats, before.batch_stats)
  assert after.step == before.step + 1
  assert after.updates == before.updates
  for name in after.memories.keys() - setting.hosts.keys():
    chex.assert_trees_all_equal(after.memories[name], before.memories[name])
  for name in setting.hosts:  # Their exchange happens all the same.
    exchanged, _ = jax.jit(setting.method.memories[name].exchange)(
      before.memories[name], setting.host_inputs[name], before.step, before.updates, SCHEDULE(before.step))
    chex.assert_trees_all_close(after.memories[name].rows, exchanged.rows, rtol=1e-6)


@pytest.mark.parametrize('name', methods.available())
def test_saving_and_resuming_is_the_identity(settings, name, mesh8, tmp_path):
  setting = settings(mesh8)
  setting.take(0)
  checkpoints = Checkpoints(tmp_path / 'checkpoints', keep=1)
  checkpoints.save(setting.state, 1, {'n': NUM_IMAGES})
  checkpoints.wait()
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
                        setting.state)
  restored = checkpoints.restore(shapes, {'n': NUM_IMAGES})
  is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  open_keys = lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf
  chex.assert_trees_all_equal(jax.tree.map(open_keys, restored), jax.tree.map(open_keys, setting.state))
  checkpoints.close()


@pytest.mark.parametrize('name', methods.available())
def test_encode_and_embed_give_finite_features(settings, name, mesh8):
  """What embed gives is the head of what encode gives, whatever the head."""
  setting = settings(mesh8)
  network, variables = setting.method.network, train_step.variables(setting.state)
  head = {collection: parts['head'] for collection, parts in variables.items()}

  @jax.jit
  def features_of(variables, head, images):
    features = network.encode(variables, images)
    return features, network.embed(variables, images), mlp_of(head['params']).apply(head, features)
  images = np.linspace(0, 1, 2 * 768, dtype=np.float32).reshape(2, 16, 16, 3)
  features, embedded, of_features = features_of(variables, head, images)
  chex.assert_shape(embedded, (2, 8))
  assert features.dtype == embedded.dtype == jnp.float32
  assert features.shape[0] == 2
  chex.assert_tree_all_finite((features, embedded))
  np.testing.assert_allclose(of_features, embedded, rtol=1e-4, atol=1e-5)


def test_on_8_then_4_then_16_devices_the_losses_are_those_of_an_undisturbed_run(programs, tmp_path):
  """The last start is in a process that has 16."""
  wholes, changed = {}, {}
  for case in CASES:
    config, folder = config_of_case('no images', tmp_path, case), tmp_path / case
    on = lambda count, config=config: programs(
      config, meshes.make_mesh(devices=jax.devices()[:count]), jnp.dtype(jnp.float32))
    wholes[case] = take_steps(on(8), folder / 'whole', STEPS)
    changed[case] = [take_steps(on(8), folder / 'changed', 2), take_steps(on(4), folder / 'changed', 4)]
  script = Path(__file__).with_name('mesh_sizes_process.py')
  process = fork(['-W', 'ignore', script, tmp_path, *CASES], XLA_FLAGS=xla_flags(16),
                 PYTHONPATH=os.pathsep.join(map(str, script.parents[1:3])))
  code, out, err = finish(process, seconds=600)
  assert code == 0, err
  last = json.loads(out.splitlines()[-1])
  assert list(last) == CASES
  for case, whole in wholes.items():
    losses = list(itertools.chain(*changed[case], last[case]))
    assert len(whole) == len(set(whole)) == len(losses) == 6, case
    np.testing.assert_allclose(losses, whole, rtol=1e-4, err_msg=case)


def test_an_unknown_method_says_what_there_is(tiny_config, mesh8):
  tiny_config.method = 'moko'
  with pytest.raises(UserError, match="'moko'; available: align_uniform, byol, co2, conic, conic_s"):
    methods.make(tiny_config, NUM_IMAGES, mesh8, jnp.float32)
