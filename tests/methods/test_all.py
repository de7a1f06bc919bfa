"""What every method must hold, walked by name."""
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import collective_sizes

from conic_jax import mesh as meshes
from conic_jax import methods, optim, train
from conic_jax.checkpoint import Checkpoints
from conic_jax.errors import UserError

NUM_IMAGES, BATCH = 37, 16


def setting(config, name, mesh):
  config.method = name
  method = methods.make(config, NUM_IMAGES, mesh, jnp.dtype(jnp.float32))
  optimizer = optim.make_optimizer(config.optimizer)
  init = lambda: train.init_state(method, optimizer, 0, jnp.float32)
  shardings = train.state_shardings(jax.eval_shape(init), method, mesh)
  state = jax.jit(init, out_shardings=shardings)()
  step = jax.jit(train.make_step(method, optimizer, optim.cosine_schedule(0.1, 10), 0, 2, jnp.float32),
                 in_shardings=(shardings, meshes.batch_sharding(mesh)),
                 out_shardings=(shardings, meshes.replicated(mesh)))
  return method, state, shardings, step


def make_batch(method, mesh, seed):
  rng = np.random.default_rng(seed)
  count = sum(group.count for group in method.views)
  views = tuple(rng.integers(0, 256, (BATCH, group.count, group.size, group.size, 3), np.uint8)
                for group in method.views)
  batch = {'views': views, 'id': rng.permutation(NUM_IMAGES)[:BATCH].astype(np.int32),
           'valid': np.arange(BATCH) != 3, 'crop': np.tile(np.float32([0, 0, 1, 1]), (BATCH, count, 1)),
           'flip': rng.random((BATCH, count)) < 0.5}
  return meshes.to_global(batch, mesh)


@pytest.mark.parametrize('name', methods.available())
def test_one_and_eight_devices_agree_and_keep_their_shardings(tiny_config, name):
  results = []
  for devices in (1, 8):
    mesh = meshes.make_mesh(devices=jax.devices()[:devices])
    method, state, shardings, step = setting(tiny_config, name, mesh)
    first = {}
    for index in range(3):
      state, metrics = step(state, make_batch(method, mesh, index))
      chex.assert_tree_all_finite(metrics)
      first = first or metrics
    jax.tree.map(lambda leaf, want: chex.assert_equal(leaf.sharding.is_equivalent_to(want, leaf.ndim), True),
                 state, shardings)
    cut = lambda leaf: np.asarray(leaf)[:NUM_IMAGES] if leaf.ndim == 2 else np.asarray(leaf)
    results.append(jax.device_get((first, metrics, jax.tree.map(cut, state.method_state), state.params)))
  chex.assert_trees_all_close(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float16])
@pytest.mark.parametrize('name', methods.available())
def test_no_collective_of_the_whole_step_grows_with_n(tiny_config, name, dtype, mesh8):
  """The step of 4,096 images needs the communication of that of 256: rows stay where they are."""
  tiny_config.method, dtype = name, jnp.dtype(dtype)
  largest = []
  for num_images in (256, 4096):
    method = methods.make(tiny_config, num_images, mesh8, dtype)
    optimizer = optim.make_optimizer(tiny_config.optimizer)
    shapes = jax.eval_shape(functools.partial(train.init_state, method, optimizer, 0, dtype))
    shardings = train.state_shardings(shapes, method, mesh8)
    step = jax.jit(train.make_step(method, optimizer, optim.cosine_schedule(0.1, 10), 0, 2, dtype),
                   in_shardings=(shardings, meshes.batch_sharding(mesh8)),
                   out_shardings=(shardings, meshes.replicated(mesh8)), donate_argnums=0)
    compiled = step.lower(shapes, make_batch(method, mesh8, 0)).compile()
    largest.append(max(collective_sizes(compiled.as_text())))
  assert largest[0] == largest[1]


@pytest.mark.parametrize('name', methods.available())
def test_saving_and_resuming_is_the_identity(tiny_config, name, mesh8, tmp_path):
  method, state, _, step = setting(tiny_config, name, mesh8)
  state, _ = step(state, make_batch(method, mesh8, 0))
  checkpoints = Checkpoints(tmp_path / 'checkpoints', keep=1)
  checkpoints.save(state, 1, {'n': NUM_IMAGES})
  checkpoints.wait()
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
                        state)
  restored = checkpoints.restore(shapes, {'n': NUM_IMAGES})
  chex.assert_trees_all_equal(jax.random.key_data(restored.rng), jax.random.key_data(state.rng))
  chex.assert_trees_all_equal(restored.replace(rng=0), state.replace(rng=0))
  checkpoints.close()


@pytest.mark.parametrize('name', methods.available())
def test_encode_gives_finite_features(tiny_config, name, mesh8):
  method, state, _, _ = setting(tiny_config, name, mesh8)
  features = jax.jit(method.encode)(train.variables(state), jnp.ones((2, 16, 16, 3)))
  assert features.dtype == jnp.float32
  assert features.shape[0] == 2
  chex.assert_tree_all_finite(features)


def test_an_unknown_method_says_what_there_is(tiny_config, mesh8):
  tiny_config.method = 'moko'
  with pytest.raises(UserError, match="'moko'; there is: conic"):
    methods.make(tiny_config, NUM_IMAGES, mesh8, jnp.float32)
