"""The sampled classifiers beside the plain loop, whose rows outside the window learn without a gradient.

Momentum and weight decay move every row in every step; the library does it when a row comes back.
"""
import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest

from conic_jax.memories import instance_rows
from conic_jax.memories.store import Layout, open_store

pytestmark = pytest.mark.slow

IMAGES, SLOTS = 62, 10


def learner_of(config, method, source):
  count = source.num_images
  beta = config.classifier.beta or (count - 1) / (SLOTS - 1)
  alpha = config.get('alpha', 0.0)

  drawn = jax.jit(lambda rng: instance_rows.initial_rows(
    rng, jnp.arange(count), config.head.features, config.classifier.norm))

  def begin(state, params, stats):
    window = state.memories['window']
    rows = drawn(window.rng)
    own = {'rows': rows, 'velocity': jnp.zeros_like(rows),
           'classes': np.asarray(window.classes), 'seen': np.full(SLOTS, -1)}
    return own, stats

  def before_step(own, step, batch):
    """The batch's classes take the slots of those whose last batch is longest ago."""
    classes, seen = np.array(own['classes']), np.array(own['seen'])
    ids = np.asarray(batch['id']).tolist()
    for name in ids:
      if name in classes:
        seen[classes == name] = step
    for name in ids:
      if name not in classes:
        slot = np.argmin(seen)
        classes[slot], seen[slot] = name, step
    return {**own, 'classes': classes, 'seen': seen}

  def losses(features, rows, classes, batch):
    logits = plain.unit(features) @ plain.unit(rows[classes]).T / config.temperature
    own = (classes[None] == batch['id'][:, None])[:, None]
    positive = jnp.where(own, logits, 0).sum(axis=2)
    negatives = jnp.where(own, 0, jnp.exp(logits)).sum(axis=2)
    loss = jnp.log(jnp.exp(positive) + beta * negatives) - positive
    return loss, plain.nearest(logits, own)

  def objective(params, stats, own, batch, key):
    features, stats = plain.project(method, params, stats, batch)
    instance, hit = losses(features, own['rows'], own['classes'], batch)
    good = batch['valid']
    of_instances = plain.mean_of(instance, good)
    loss, report = of_instances, {'loss_instance': of_instances, 'instance_top1': plain.mean_of(hit, good)}
    if features.shape[1] > 1:
      report['loss_consistency'] = plain.mean_of(plain.consistency(features), good)
      loss += alpha * report['loss_consistency']
    else:
      report['loss_consistency'] = 0.0
    return loss, (stats, report, {'features': jax.lax.stop_gradient(features)})

  def for_rows(rows, own, features, batch):
    return plain.mean_of(losses(features, rows, own['classes'], batch)[0], batch['valid'])

  def shown(own):
    return {name: own[name] for name in ('classes', 'rows', 'velocity')}

  def found(memories, run, rates):
    """The rows of the window, and those outside as they were when they left, brought up to date."""
    window = memories['window']
    if config.classifier.store == 'device':
      rows, since = (np.asarray(field)[:count] for field in (window.outside.rows, window.outside.seen))
    else:
      layout = Layout(count, config.head.features, config.seed, 0, 1)
      store = open_store(config.classifier.store, run / 'store', layout, len(rates))
      stored = store.read(np.arange(count))
      store.close()
      first = np.asarray(drawn(window.rng))
      fresh = np.stack([first, np.zeros_like(first)], axis=1)
      rows, since = np.where(stored.written[:, None, None], stored.rows, fresh), stored.seen
    weights, velocity = (rows[:, part].astype(np.float64) for part in range(2))
    settings = config.classifier
    for row in range(count):
      for rate in (rate for rate in rates[since[row]:] if rate is not None):
        velocity[row] = settings.momentum * velocity[row] + settings.weight_decay * weights[row]
        weights[row] -= rate * settings.lr_scale * velocity[row]
    classes = np.asarray(window.classes)
    weights[classes] = np.asarray(window.rows.weights)[:SLOTS]
    velocity[classes] = np.asarray(window.rows.momentum)[:SLOTS]
    return {'classes': classes, 'rows': weights, 'velocity': velocity}
  return plain.Learner(begin, objective, plain.row_sgd(for_rows, config), shown, found, before_step)


SAMPLED = {'optimizer.learning_rate': 0.005, 'classifier.window': SLOTS, 'classifier.lr_scale': 30.0,
           'classifier.weight_decay': 1e-2}
CONIC_S = {**SAMPLED, 'alpha': 2.5, 'alpha_pace': 0.0, 'classifier.beta': 0.0}


@pytest.fixture(scope='module')
def by_the_plain_loop():
  """What the plain loop finds for ConIC-S, once it has: it keeps all rows in one place."""
  return []


@pytest.mark.parametrize(('store', 'devices'), [('host', (1,)), ('disk', (8,)), ('device', (8,))])
def test_conic_s_trains_as_the_plain_loop_does(oracle_config, by_the_plain_loop, store, devices, monkeypatch):
  """Images come back after more steps than the host may be behind."""
  config = oracle_config('conic_s', images=IMAGES, **CONIC_S, **{'classifier.store': store})
  known = by_the_plain_loop[0] if by_the_plain_loop else None
  for *_, wanted in plain.trainings(config, learner_of, devices, monkeypatch, wanted=known):
    by_the_plain_loop[:] = [wanted]


def test_pic_trains_as_the_plain_loop_does(oracle_config, monkeypatch):
  """Rounds are windows of images; their draws go by the round, rates and checkpoints by the epoch."""
  config = oracle_config('pic', images=IMAGES, epochs=2, **{
    **SAMPLED, 'optimizer.learning_rate': 0.003, 'sampler.window': 24, 'sampler.stride': 8,
    'classifier.store': 'device', 'views.count': 1, 'checkpoint.keep': 2})
  for _ in plain.trainings(config, learner_of, (1, 8), monkeypatch):
    pass
