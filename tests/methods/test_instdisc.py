"""InstDisc's bank and its constant, and both losses on it."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import as_method

from conic_jax import losses, methods, optim
from conic_jax.command_line import load
from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.memories.bank import init_bank
from conic_jax.memories.memory import update_all
from conic_jax.pretraining import train_step

NUM_IMAGES, BATCH, DIM = 37, 16, 8


@pytest.fixture
def config(tiny_config):
  return as_method(tiny_config, 'instdisc', **{'head.hidden': 0, 'views.count': 1, 'loss.noise': 12})


def make(config, mesh):
  return methods.make(config, NUM_IMAGES, mesh, jnp.dtype(jnp.float32))


def some_features(rng):
  features = rng.normal(size=(BATCH, DIM))
  return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def updated(method, states, seen, applied):
  """The states of the method's memories after a step."""
  return update_all(method.memories, states, seen, {}, jnp.int32(0), jnp.float32(0), applied)


def test_the_bank_against_a_dictionary_over_forty_steps(config, mesh):
  """Invalid images and steps that are skipped leave their rows as they were."""
  method = make(config, mesh)
  rng = np.random.default_rng(0)
  bank = np.asarray(init_bank(jax.random.key(3), 64, DIM))
  by_hand = {image: np.float64(bank[image]) for image in range(64)}
  state = {'bank': meshes.to_global(bank, mesh), 'normaliser': jnp.float32(0)}
  update = jax.jit(lambda state, batch, constant, applied: updated(
    method, state, {'bank': batch, 'normaliser': constant}, applied))
  for step in range(40):
    batch = {'features': some_features(rng), 'ids': rng.permutation(NUM_IMAGES)[:BATCH].astype(np.int32),
             'writes': rng.random(BATCH) < 0.8}
    state = update(state, meshes.to_global(batch, mesh), np.float32(step), np.bool_(step % 5 != 2))
    for feature, image, writes in zip(batch['features'], batch['ids'], batch['writes'], strict=True):
      if writes and step % 5 != 2:
        mixed = 0.5 * by_hand[image] + 0.5 * feature
        by_hand[image] = mixed / np.linalg.norm(mixed)
    assert state['normaliser'] == (step - 1 if step % 5 == 2 else step)
  np.testing.assert_allclose(state['bank'], np.stack(list(by_hand.values())), rtol=1e-5, atol=1e-6)


def test_the_constant_is_that_of_the_first_batch(config, mesh8):
  method = make(config, mesh8)
  rng = np.random.default_rng(1)
  state = {'bank': init_bank(jax.random.key(0), 64, DIM), 'normaliser': jnp.float32(0)}
  constants = []

  @jax.jit
  def take(state, features, batch, key):
    _, figures = method.discriminate(state, features, batch, key)
    written = {'features': features, 'ids': batch['id'], 'writes': batch['valid']}
    return updated(method, state, {'bank': written, **figures}, jnp.bool(True))

  for step in range(3):
    batch = {'id': rng.permutation(NUM_IMAGES)[:BATCH].astype(np.int32), 'valid': np.ones(BATCH, bool)}
    state = take(state, some_features(rng), batch, jax.random.key(step))
    constants.append(float(state['normaliser']))
  assert constants[0] > 0
  assert constants[0] == constants[1] == constants[2]


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['nce', 'full'])
def test_a_step_holds_the_bank_once(config, mesh8, loss):
  """The bank is written where it is read: no copy of it is made."""
  config.loss.name, num_images, dtype = loss, 2 ** 20, jnp.dtype('float32')
  method, optimizer = methods.make(config, num_images, mesh8, dtype), optim.make_optimizer(config.optimizer)
  shapes = jax.eval_shape(lambda: train_step.init_state(method, optimizer, 0, dtype))
  shardings = train_step.state_shardings(shapes, method, mesh8)
  step = jax.jit(train_step.make_step(method, optimizer, lambda step: jnp.float32(0.1), 0, 2, dtype),
                 in_shardings=(shardings, meshes.batch_sharding(mesh8)),
                 out_shardings=(shardings, meshes.replicated(mesh8), meshes.replicated(mesh8)),
                 donate_argnums=0)
  batch = {'views': (np.zeros((BATCH, 1, 16, 16, 3), np.uint8),), 'id': np.arange(BATCH, dtype=np.int32),
           'valid': np.ones(BATCH, bool), 'crop': np.zeros((BATCH, 1, 4), np.float32),
           'flip': np.zeros((BATCH, 1), bool)}
  compiled = step.lower(shapes, batch).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < num_images // 8 * DIM * 4 / 2


@pytest.mark.slow
def test_the_full_loss_is_the_softmax_over_the_bank(config, mesh8):
  config.loss.name = 'full'
  method = make(config, mesh8)
  rng = np.random.default_rng(2)
  features, ids = some_features(rng), rng.permutation(NUM_IMAGES)[:BATCH].astype(np.int32)
  bank = init_bank(jax.random.key(0), 64, DIM)
  batch = {'id': ids, 'valid': np.ones(BATCH, bool)}
  ours, _ = jax.jit(method.discriminate)({'bank': bank}, features, batch, jax.random.key(0))
  expected = losses.instance_classification(jnp.asarray(features), bank[:NUM_IMAGES], jnp.asarray(ids),
                                            config.temperature)
  np.testing.assert_allclose(ours, expected, rtol=1e-5)
  first = jax.eval_shape(method.init, jax.random.key(0), {'views': (jnp.zeros((1, 1, 16, 16, 3)),)})
  assert set(first[2]) == {'bank'}


def test_the_config_is_the_public_codes():
  """Its main.py; the photos and CIFAR-10 have their own."""
  config = load('configs/instdisc.py')
  views = config.views
  assert (views.count, views.crop, views.flip, views.grayscale, views.blur) == (1, (0.2, 1.0), 0.5, 0.2, 0.0)
  assert (views.jitter, views.strength) == (1.0, 1.0)
  assert (views.brightness, views.contrast, views.saturation, views.hue) == (0.4,) * 4
  assert (config.head.hidden, config.head.features, config.temperature) == (0, 128, 0.07)
  assert (config.loss.name, config.loss.noise, config.bank.momentum) == ('nce', 4096, 0.5)
  assert (config.batch_size, config.epochs, config.eval.k) == (256, 200, (200,))
  sgd = config.optimizer
  assert (sgd.learning_rate, sgd.momentum, sgd.weight_decay, sgd.decay_vectors) == (0.03, 0.9, 1e-4, True)
  assert (sgd.schedule, sgd.milestones, sgd.warmup_epochs) == ('steps', (120, 160), 0)
  assert load('configs/instdisc.py:full').loss.name == 'full'


@pytest.mark.parametrize(('field', 'value', 'message'), [
  ('loss.name', 'softmax', r"config\.loss\.name is 'softmax'; available: nce, full"),
  ('loss.noise', 0, r'config\.loss\.noise is 0; it must be at least 1'),
  ('bank.momentum', 1.0, r'config\.bank\.momentum is 1\.0'),
  ('views.count', 2, r'config\.views\.count is 2')])
def test_settings_that_no_run_can_have(config, mesh8, field, value, message):
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=message):
    make(config, mesh8)
