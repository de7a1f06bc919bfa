"""One-Million beside the plain loop: the contrastive prior, and labels smoothed on the hardest classes."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest

from conic_jax.data import pipeline

pytestmark = pytest.mark.slow
# The epoch that names the order and the views of the pass before training.
PASS = 2 ** 32 - 2


def learner_of(config, method, source):
  count, k, share = source.num_images, config.smoothing.k, config.smoothing.alpha

  def begin(state, params, stats):
    """A pass over every image under running batch norm, whose features become the rows."""
    rows, passed = np.array(state.memories['rows'].weights)[:count], []
    seen = jax.jit(lambda stats, images, good: method.network.project(params, stats, images, good, 'running'))
    view = (dataclasses.replace(method.views[0], count=1),)
    drawn = pipeline.whole_pass_batches(
      source, view, batch_size=config.batch_size, seed=config.seed, epoch=PASS,
      start_step=0, rows=np.arange(config.batch_size))
    for batch in drawn:
      batch = plain.augmented(batch, view, config.seed, PASS)
      features, stats = seen(stats, batch['views'][0][:, 0], batch['valid'])
      good = np.asarray(batch['valid'])
      rows[np.asarray(batch['id'])[good]] = np.asarray(features)[good]
      passed += np.asarray(batch['id']).tolist()
    assert sorted(passed) == [*[-1] * (len(passed) - count), *range(count)]
    rows = jnp.asarray(rows)
    return {'rows': rows, 'velocity': jnp.zeros_like(rows), 'hardest': None}, stats

  def before_step(own, step, batch):
    """At the start of an epoch, for every image the K others whose rows are nearest to its own."""
    if step % (count // config.batch_size):
      return own
    rows = np.asarray(plain.unit(own['rows']), np.float64)
    cosines = rows @ rows.T - 9 * np.eye(count)
    return {**own, 'hardest': np.argsort(-cosines, axis=1)[:, :k]}

  def losses(features, rows, hardest, batch):
    logits = plain.unit(features) @ plain.unit(rows).T / config.temperature
    own = jnp.arange(count)[None] == batch['id'][:, None]
    hard = (jnp.arange(count)[None, None] == hardest[batch['id']][..., None]).sum(axis=1)
    label = (1 - share) * own.astype(jnp.float32) + share / k * hard.astype(jnp.float32)
    loss = -jnp.log((label[:, None] * jnp.exp(logits)).sum(axis=2) / jnp.exp(logits).sum(axis=2))
    return loss, plain.nearest(logits, own[:, None])

  def objective(params, stats, own, batch, key):
    features, stats = plain.project(method, params, stats, batch)
    instance, hit = losses(features, own['rows'], own['hardest'], batch)
    loss = plain.mean_of(instance, batch['valid'])
    report = {'loss_instance': loss, 'instance_top1': plain.mean_of(hit, batch['valid']),
              'loss_consistency': plain.mean_of(plain.consistency(features), batch['valid'])}
    return loss, (stats, report, {'features': jax.lax.stop_gradient(features)})

  def for_rows(rows, own, features, batch):
    return plain.mean_of(losses(features, rows, own['hardest'], batch)[0], batch['valid'])

  def shown(own):
    return {**own, 'hardest': np.sort(own['hardest'], axis=1)}

  def found(memories, run, rates):
    return {**plain.rows_of(memories['rows'], count),
            'hardest': np.sort(np.asarray(memories['hardest'])[:count], axis=1)}
  return plain.Learner(begin, objective, plain.row_sgd(for_rows, config), shown, found, before_step)


def test_one_million_trains_as_the_plain_loop_does(oracle_config, monkeypatch):
  config = oracle_config('one_million', **{
    'smoothing.k': 5, 'smoothing.alpha': 0.2, 'smoothing.table': 'epoch', 'prior.batch_norm': 'running',
    'prior.normalise': False, 'prior.keep_statistics': True, 'classifier.lr_scale': 30.0,
    'classifier.weight_decay': 1e-2})
  for _ in plain.trainings(config, learner_of, (1, 8), monkeypatch):
    pass
