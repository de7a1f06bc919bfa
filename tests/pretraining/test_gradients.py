"""A batch in parts against the whole batch."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import collective_sizes, lose_what_followed, losses_by_step, noise_batch, tiny_method

from conic_jax import methods, optim
from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.memories.host import HostSettings
from conic_jax.memories.memory import hosted
from conic_jax.pretraining import gradients, train_step, training

pytestmark = pytest.mark.slow

NUM_IMAGES, BATCH = 45, 32
# Settings under which nothing normalises over images.
WITHOUT_BATCH_NORM = {'encoder.name': 'vit_tiny', 'encoder.width': 1 / 12, 'head.norm': False}
COLOURS = {'views.jitter': 0.8, 'views.grayscale': 0.2, 'views.blur': 0.5}


def batch_ids(step):
  return np.random.default_rng(step).permutation(NUM_IMAGES)[:BATCH]


def batch_of(method, mesh, step):
  return noise_batch(method, mesh, step, batch_ids(step), np.arange(BATCH) % 7 != 3)


def trained(config, mesh, folder, parts, dtype='float32'):
  """The state and the metrics after three steps, as a whole and in so many parts, on the host."""
  config.batch_size, config.accumulate, dtype = BATCH, parts, jnp.dtype(dtype)
  method, optimizer = methods.make(config, NUM_IMAGES, mesh, dtype), optim.make_optimizer(config.optimizer)
  init = functools.partial(train_step.init_state, method, optimizer, 0, dtype)
  shardings = train_step.state_shardings(jax.eval_shape(init), method, mesh)
  init, prepare = jax.jit(init, out_shardings=shardings), train_step.jit_before_epoch(method, shardings)
  for config.accumulate in (1, parts):
    step = train_step.jit_step(
      train_step.make_step(method, optimizer, optim.cosine_schedule(0.03, 10), 0, 2, dtype,
                           gradients.chosen(config, method, mesh)), shardings, mesh)
    begun = prepare(init()) if prepare else init()
    yield after_steps(step, begun, method, mesh, folder / str(config.accumulate))


def after_steps(step, state, method, mesh, folder, steps=3):
  """The state and the metrics after some steps, on the host."""
  hosts = {name: memory.host(HostSettings(folder, batch_ids, BATCH, 10, 2, 1))
           for name, memory in hosted(method.memories).items()}
  for name, host in hosts.items():
    host.start(state.memories[name], 0, fresh=True)
  told = []
  for number in range(steps):
    batch = batch_of(method, mesh, number)
    if hosts:
      batch['host_inputs'] = {name: host.inputs(number) for name, host in hosts.items()}
    state, metrics, outputs = step(state, batch)
    told.append(metrics)
    for name, host in hosts.items():
      host.receive(number, outputs[name])
  for host in hosts.values():
    host.close()
  kept = (state.params, state.batch_stats, state.memories, state.opt_state, told)
  return jax.device_get([leaf for leaf in jax.tree.leaves(kept)
                         if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)])


def assert_close(ours, theirs, rtol=1e-4, atol=1e-5):
  assert len(ours) == len(theirs)
  for one, other in zip(ours, theirs):
    np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize(('name', 'parts', 'changes'), [
  ('conic', 4, {'alpha_pace': 5.0, **COLOURS}),
  ('pic', 2, {'classifier.window': 40, 'encoder.name': 'convnext_tiny', 'encoder.width': 1 / 24,
              'small_views.count': 2, 'small_views.size': 8}),
  ('one_million', 4, {'smoothing.alpha': 0.2}),
  ('one_million', 4, {'smoothing.alpha': 0.0, 'classifier.drawn': 11}),
  ('conic_s', 4, {'classifier.window': 40}),
  ('data_parallel', 2, {}),
  ('co2', 4, {'batch_norm.groups': 0}),
  ('byol', 2, {'predictor.norm': False}),
  ('instdisc', 2, {}),
])
def test_a_batch_in_parts_trains_as_the_whole_batch(tiny_config, mesh8, tmp_path, name, parts, changes):
  config = tiny_method(tiny_config, name, **{
    **WITHOUT_BATCH_NORM, **dict.fromkeys(COLOURS, 0.0), **changes})
  whole, in_parts = trained(config, mesh8, tmp_path, parts)
  assert_close(in_parts, whole)


def test_float16_in_parts_scales_the_loss_once(tiny_config, tmp_path):
  tiny_config.update_from_flattened_dict({
    **dict.fromkeys(COLOURS, 0.0), 'encoder.name': 'convnext_tiny', 'encoder.width': 1 / 24,
    'head.norm': False})
  one = meshes.make_mesh(devices=jax.devices()[:1])
  with jax.numpy_dtype_promotion('standard'):  # Flax's layer norm needs it.
    whole, in_parts = trained(tiny_config, one, tmp_path, 2, dtype='float16')
    assert_close(in_parts, whole, rtol=0.02, atol=2e-3)


def test_statistics_are_the_mean_over_the_parts_and_frozen_patches_stay(tiny_config):
  config, parts = tiny_config, gradients.Parts(3, meshes.make_mesh(devices=jax.devices()[:1]))
  config.update_from_flattened_dict({
    **WITHOUT_BATCH_NORM, 'head.norm': True, 'encoder.frozen_patches': True, 'batch_size': 12})
  method = methods.make(config, NUM_IMAGES, parts.mesh, jnp.dtype('float32'))
  optimizer = optim.make_optimizer(config.optimizer)
  state = jax.jit(lambda: train_step.init_state(method, optimizer, 0, jnp.dtype('float32')))()
  rng = np.random.default_rng(0)
  batch = {'views': (rng.normal(size=(12, 2, 16, 16, 3)).astype(np.float32),),
           'id': np.arange(12, dtype=np.int32), 'valid': np.ones(12, bool)}
  _, (_, aux) = jax.jit(lambda state, batch: gradients.of_parts(
    parts, method, state, batch, jax.random.key(0), lambda part: part))(state, batch)
  pieces = [jax.tree.map(lambda x, first=first: x[first:first + 4], batch) for first in (0, 4, 8)]
  embed = jax.jit(lambda state, piece: method.embed(
    state.params, state.batch_stats, {}, piece, None)[1]['head'])
  means = [embed(state, piece) for piece in pieces]
  expected = jax.tree.map(lambda *each: np.mean(each, axis=0), *means)
  assert_close(jax.tree.leaves(aux.batch_stats['head']), jax.tree.leaves(expected))
  before, after = (jax.tree.leaves(stats['encoder']) for stats in (state.batch_stats, aux.batch_stats))
  assert before
  for one, other in zip(before, after):
    np.testing.assert_array_equal(one, other)


def test_parts_take_their_share_of_every_device_and_move_nothing(mesh8):
  parts, batch = gradients.Parts(2, mesh8), jnp.arange(32)
  with jax.set_mesh(mesh8):
    on_mesh = jax.device_put(batch, meshes.batch_sharding(mesh8))
    split = jax.jit(parts.split)(on_mesh)
    joined = jax.jit(lambda x: parts.join(parts.split(x)))(on_mesh)
    text = jax.jit(lambda x: parts.join(parts.split(x) + 1)).lower(on_mesh).compile().as_text()
  np.testing.assert_array_equal(split[0], [4 * device + image for device in range(8) for image in (0, 1)])
  np.testing.assert_array_equal(joined, batch)
  assert joined.sharding.is_equivalent_to(on_mesh.sharding, 1)
  assert collective_sizes(text) == []


@pytest.mark.parametrize(('name', 'changes', 'says'), [
  ('simclr', {}, 'it contrasts each image with all others of the batch'),
  ('align_uniform', {}, 'the pairs of images of a batch'),
  ('inscon', {}, 'join four images of the batch'),
  ('conic', {'accumulate': 3}, r'split into config\.accumulate 3 parts over 8 devices: set one .* 24 '),
  ('moco', {'batch_norm.groups': 16}, r'groups 16 does not divide the 8 images of a part'),
  ('moco', {'batch_norm.groups': 8}, 'at most 4'),
])
def test_what_cannot_be_divided_is_refused(tiny_config, mesh8, name, changes, says):
  config = tiny_method(tiny_config, name, **{'batch_size': 16, 'accumulate': 2, **changes})
  with pytest.raises(UserError, match=says):
    gradients.chosen(config, methods.make(config, NUM_IMAGES, mesh8, jnp.dtype('float32')), mesh8)


def test_a_run_goes_on_in_parts_with_blocks_computed_again(tiny_config):
  """Both change the memory, not the training: a run may change them where it stands."""
  tiny_config.update_from_flattened_dict(WITHOUT_BATCH_NORM)
  tiny_config.eval.update(knn=False, linear=False)
  tiny_config.max_steps, tiny_config.checkpoint.every_epochs = 4, 2 / 3
  training.pretrain(tiny_config)
  undisturbed = losses_by_step(tiny_config.run)
  lose_what_followed(tiny_config.run, 2)
  assert sorted(losses_by_step(tiny_config.run)) == [1, 2]
  tiny_config.accumulate, tiny_config.encoder.remat = 2, True
  training.pretrain(tiny_config)
  in_parts = losses_by_step(tiny_config.run)
  assert sorted(in_parts) == [1, 2, 3, 4]
  assert in_parts == pytest.approx(undisturbed, rel=1e-4)
