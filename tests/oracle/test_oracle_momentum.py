"""MoCo and BYOL beside the plain loop: the averages of parameters, the queue, groups of batch norm."""
import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest

pytestmark = pytest.mark.slow

QUEUE = 21  # No multiple of the batch.


@jax.jit
def average(old, new, momentum):
  return jax.tree.map(lambda one, other: momentum * one + (1 - momentum) * other, old, new)


def moco(config, method, source):
  groups, total = config.batch_norm.groups, config.epochs * (source.num_images // config.batch_size)

  def begin(state, params, stats):
    queue = state.memories['queue']
    return {'params': params, 'stats': stats, 'keys': jnp.asarray(np.asarray(queue.keys)[:QUEUE]),
            'ids': jnp.full(QUEUE, -1), 'place': 0}, stats

  def objective(params, stats, own, batch, key):
    views, good, size = batch['views'][0], batch['valid'], config.batch_size
    members = jax.random.permutation(key, jnp.arange(size, dtype=jnp.int32) // (size // groups))
    queries, stats = method.network.project(params, stats, views[:, 0], good, 'grouped')
    keys, key_stats = jax.lax.stop_gradient(
      method.network.project(own['params'], own['stats'], views[:, 1], good, 'grouped', members))
    queries, keys = plain.unit(queries), plain.unit(keys)
    positive = (queries * keys).sum(axis=1) / config.temperature
    negatives = queries @ own['keys'].T / config.temperature
    counted = batch['id'][:, None] != own['ids'][None]
    loss = -jnp.log(jnp.exp(positive) / (
      jnp.exp(positive) + jnp.where(counted, jnp.exp(negatives), 0).sum(axis=1)))
    nearest = positive > jnp.where(counted, negatives, -jnp.inf).max(axis=1)
    seen = {'features': jax.lax.stop_gradient(jnp.stack([queries, keys], axis=1)), 'stats': key_stats}
    report = {'contrast_top1': plain.mean_of(nearest.astype(jnp.float32), good)}
    return plain.mean_of(loss, good), (stats, report, seen)

  def after(own, params, seen, batch, lr, step):
    keys, ids, place = np.array(own['keys']), np.array(own['ids']), own['place']
    for index in np.flatnonzero(batch['valid']):
      keys[place], ids[place] = seen['features'][index, 1], batch['id'][index]
      place = (place + 1) % QUEUE
    momentum = plain.cosine_momentum(config.momentum.start, step, total)
    return {'params': average(own['params'], params, momentum), 'stats': seen['stats'],
            'keys': jnp.asarray(keys), 'ids': jnp.asarray(ids), 'place': place}

  def found(memories, run, rates):
    queue, key = memories['queue'], memories['key']
    return {'params': key['params'], 'stats': key['batch_stats'], 'keys': np.asarray(queue.keys)[:QUEUE],
            'ids': np.asarray(queue.ids)[:QUEUE], 'place': queue.position}
  return plain.Learner(begin, objective, after, lambda own: own, found)


def test_moco_trains_as_the_plain_loop_does(oracle_config, monkeypatch):
  config = oracle_config('moco', **{
    'queue.size': QUEUE, 'queue.mask_own': True, 'batch_norm.groups': 2, 'batch_norm.shuffle': True,
    'momentum.start': 0.8, 'momentum.schedule': 'cosine'})
  for _ in plain.trainings(config, moco, (1, 8), monkeypatch):
    pass


def byol(config, method, source):
  total = config.epochs * (source.num_images // config.batch_size)

  def begin(state, params, stats):
    target = {name: params[name] for name in ('encoder', 'head')}
    return {'params': target, 'stats': {name: stats[name] for name in target}}, stats

  def objective(params, stats, own, batch, key):
    """Every view is a batch of its own: the first views, then the second."""
    good = batch['valid']
    views = jnp.concatenate(batch['views'], axis=1)
    flat, valid = views.reshape(-1, *views.shape[2:]), jnp.repeat(good, 2)
    groups = jnp.tile(jnp.arange(2, dtype=jnp.int32), len(views))
    projected, stats = method.network.project(params, stats, flat, valid, 'grouped', groups)
    predicted, updated = method.predictor.apply(
      {'params': params['predictor'], 'batch_stats': stats['predictor']}, projected, mode='grouped',
      mask=valid, members=groups, mutable=['batch_stats'])
    stats = {**stats, 'predictor': updated['batch_stats']}
    target, target_stats = jax.lax.stop_gradient(
      method.network.project(own['params'], own['stats'], flat, valid, 'grouped', groups))
    first, second = (plain.unit(predicted)[view::2] for view in range(2))
    of_first, of_second = (plain.unit(target)[view::2] for view in range(2))
    loss = ((first - of_second) ** 2).sum(axis=1) + ((second - of_first) ** 2).sum(axis=1)
    seen = {'features': jax.lax.stop_gradient(projected.reshape(*views.shape[:2], -1)), 'stats': target_stats}
    return plain.mean_of(loss, good), (stats, {}, seen)

  def after(own, params, seen, batch, lr, step):
    momentum = plain.cosine_momentum(config.momentum.start, step, total)
    online = {name: params[name] for name in own['params']}
    return {'params': average(own['params'], online, momentum), 'stats': seen['stats']}

  def found(memories, run, rates):
    target = memories['target']
    return {'params': target['params'], 'stats': target['batch_stats']}
  return plain.Learner(begin, objective, after, lambda own: own, found)


def test_byol_trains_as_the_plain_loop_does(oracle_config, monkeypatch):
  """The target's momentum goes to 1 over the whole run."""
  config = oracle_config('byol', **{
    'views.count': 1, 'second_view.solarise': 0.5, 'momentum.start': 0.8, 'momentum.schedule': 'cosine'})
  for _ in plain.trainings(config, byol, (1, 8), monkeypatch):
    pass
