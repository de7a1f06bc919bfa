"""What every method must hold, walked by name."""
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import collective_sizes, tiny_method

from conic_jax import methods, optim
from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.memories.host import HostSettings
from conic_jax.memories.memory import hosted
from conic_jax.models import mlp_of
from conic_jax.pretraining import train_step
from conic_jax.run.checkpoints import Checkpoints

pytestmark = pytest.mark.slow

NUM_IMAGES, BATCH = 37, 16
SCHEDULE = optim.cosine_schedule(0.03, 10)


# Copying the rows to every device, and adding their gradients up, is what data_parallel is about; byol and
# simclr keep nothing that grows; the others are as conic and conic_s.
PARTITIONED = [name for name in methods.available()
               if name not in ('data_parallel', 'byol', 'simclr', 'exemplar', 'pic', 'co2', 'align_uniform')]


@pytest.fixture
def method_config(tiny_config, name):
  """The tiny network with the settings that the method's own config has beside ConIC's."""
  return tiny_method(tiny_config, name)


def batch_ids(step):
  return np.random.default_rng(step).permutation(NUM_IMAGES)[:BATCH]


class Program:
  """A method with its first state and its step for a mesh."""

  def __init__(self, config, mesh, dtype):
    self.mesh = mesh
    self.method = methods.make(config, NUM_IMAGES, mesh, dtype)
    optimizer = optim.make_optimizer(config.optimizer)
    init = functools.partial(train_step.init_state, self.method, optimizer, 0, dtype)
    self.shardings = train_step.state_shardings(jax.eval_shape(init), self.method, mesh)
    self.init = jax.jit(init, out_shardings=self.shardings)
    self.prepare = train_step.jit_before_epoch(self.method, self.shardings)
    self.step = jax.jit(
      train_step.make_step(self.method, optimizer, SCHEDULE, 0, 2, dtype),
      in_shardings=(self.shardings, meshes.batch_sharding(mesh)),
      out_shardings=(self.shardings, meshes.replicated(mesh), meshes.replicated(mesh)))


@pytest.fixture(scope='module')
def programs():
  """Makes programs, each once: to trace and compile them takes most of the time."""
  made = {}

  def program(config, mesh, dtype):
    key = config.method, mesh.size, dtype
    if key not in made:
      made[key] = Program(config, mesh, dtype)
    return made[key]
  return program


class Setting:
  """A program with its state and hosts."""

  def __init__(self, program, folder):
    self.program, self.method, self.shardings = program, program.method, program.shardings
    self.state = program.init()
    if program.prepare:
      self.state = program.prepare(self.state)
    settings = HostSettings(folder, batch_ids, BATCH, 10, 2, 1)
    self.hosts = {name: memory.host(settings) for name, memory in hosted(self.method.memories).items()}
    for name, host in self.hosts.items():
      host.start(self.state.memories[name], 0, fresh=True)

  def take(self, step, **changes):
    """Takes a step and gives its metrics."""
    inputs = {**make_batch(self.method, self.program.mesh, step), **changes}
    self.host_inputs = {name: host.inputs(step) for name, host in self.hosts.items()}
    if self.hosts:
      inputs['host_inputs'] = self.host_inputs
    self.state, metrics, outputs = self.program.step(self.state, inputs)
    for name, host in self.hosts.items():
      host.receive(step, outputs[name])
    return metrics


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


def make_batch(method, mesh, step):
  rng = np.random.default_rng(step)
  count = sum(group.count for group in method.views)
  views = tuple(rng.integers(0, 256, (BATCH, group.count, group.size, group.size, 3), np.uint8)
                for group in method.views)
  batch = {'views': views, 'id': batch_ids(step).astype(np.int32),
           'valid': np.arange(BATCH) != 3, 'crop': np.tile(np.float32([0, 0, 1, 1]), (BATCH, count, 1)),
           'flip': rng.random((BATCH, count)) < 0.5}
  return meshes.to_global(batch, mesh)


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
def test_no_collective_of_the_whole_step_grows_with_what_is_kept(method_config, name, dtype, mesh8):
  """4,096 images or keys need the communication of 256: rows and queues stay where they are."""
  dtype, largest = jnp.dtype(dtype), []
  for kept in (256, 4096):
    queues = {'queue.size': kept, 'cell.queue': 9 * kept}
    method_config.update_from_flattened_dict(
      {field: size for field, size in queues.items() if field.split('.')[0] in method_config})
    method = methods.make(method_config, NUM_IMAGES if 'queue' in method_config else kept, mesh8, dtype)
    optimizer = optim.make_optimizer(method_config.optimizer)
    shapes = jax.eval_shape(functools.partial(train_step.init_state, method, optimizer, 0, dtype))
    shardings = train_step.state_shardings(shapes, method, mesh8)
    step = jax.jit(train_step.make_step(method, optimizer, SCHEDULE, 0, 2, dtype),
                   in_shardings=(shardings, meshes.batch_sharding(mesh8)),
                   out_shardings=(shardings, meshes.replicated(mesh8), meshes.replicated(mesh8)),
                   donate_argnums=0)
    batch = make_batch(method, mesh8, 0) | train_step.host_input_shapes(method, BATCH)
    compiled = step.lower(shapes, batch).compile()
    largest.append(max(collective_sizes(compiled.as_text())))
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
  variables, images = train_step.variables(setting.state), jnp.linspace(0, 1, 2 * 768).reshape(2, 16, 16, 3)
  features = jax.jit(setting.method.network.encode)(variables, images)
  embedded = jax.jit(setting.method.network.embed)(variables, images)
  head = {collection: parts['head'] for collection, parts in variables.items()}
  chex.assert_shape(embedded, (2, 8))
  assert features.dtype == embedded.dtype == jnp.float32
  assert features.shape[0] == 2
  chex.assert_tree_all_finite((features, embedded))
  np.testing.assert_allclose(mlp_of(head['params']).apply(head, features), embedded, rtol=1e-4, atol=1e-5)


def test_an_unknown_method_says_what_there_is(tiny_config, mesh8):
  tiny_config.method = 'moko'
  with pytest.raises(UserError, match="'moko'; available: align_uniform, byol, co2, conic, conic_s"):
    methods.make(tiny_config, NUM_IMAGES, mesh8, jnp.float32)
