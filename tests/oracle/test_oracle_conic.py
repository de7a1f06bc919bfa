"""ConIC beside the plain loop: two groups of views, rows at a rate of their own, an undecodable image."""
import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from ml_collections import ConfigDict

from conic_jax.data import pipeline, sources
from conic_jax.pretraining import train_step
from conic_jax.views import Views

pytestmark = pytest.mark.slow


def learner_of(config, method, source):
  count, first = source.num_images, config.views.count

  def losses(features, rows, batch):
    own = jnp.arange(count)[None] == batch['id'][:, None]
    return plain.classified(features, rows, config.temperature, own)

  def objective(params, stats, own, batch, key):
    features, stats = plain.project(method, params, stats, batch)
    instance, hit = losses(features, own['rows'], batch)
    good = batch['valid']
    of_instances = plain.mean_of(instance, good)
    of_pairs = plain.mean_of(plain.consistency(features), good)
    report = {'loss_instance': of_instances, 'loss_consistency': of_pairs,
              'instance_top1': plain.mean_of(hit, good)}
    seen = {'features': jax.lax.stop_gradient(features)}
    return of_instances + config.alpha * of_pairs, (stats, report, seen)

  def for_rows(rows, own, features, batch):
    """Small views teach the encoder alone, and the mean is that over all views."""
    instance, _ = losses(features, rows, batch)
    taught = jnp.where(batch['valid'][:, None], instance, 0)[:, :first]
    return taught.sum() / (batch['valid'].sum().astype(taught.dtype) * features.shape[1])

  def begin(state, params, stats):
    rows = jnp.asarray(np.asarray(state.memories['rows'].weights)[:count])
    return {'rows': rows, 'velocity': jnp.zeros_like(rows)}, stats

  def found(memories, run, rates):
    return plain.rows_of(memories['rows'], count)
  return plain.Learner(begin, objective, plain.row_sgd(for_rows, config), lambda own: own, found)


def plain_knn(encode, variables, config):
  """The share of test images whose class has most votes among their nearest training images."""
  views = Views(**config.views)

  def encoded(split):
    found, labels = [], []
    for batch in pipeline.eval_batches(sources.open_source(config.data, split), size=config.views.size,
                                       resize=config.eval.resize, batch_size=1, rows=np.arange(1)):
      if batch['valid'][0]:
        image = (batch['views'][0][:, 0] / 255 - np.array(views.mean)) / np.array(views.std)
        features = encode(variables, jnp.asarray(image, jnp.float32))
        found.append(np.asarray(plain.unit(features))[0])
        labels.append(int(batch['label'][0]))
    return np.array(found), np.array(labels)

  (bank, labels), (queries, wanted) = encoded(config.data.train), encoded(config.data.test)
  hits = 0
  for row, label in zip(queries @ bank.T, wanted, strict=True):
    nearest = np.argsort(-row)[:config.eval.k[0]]
    votes = np.bincount(labels[nearest], np.exp(row[nearest] / 0.07), minlength=2)
    hits += votes.argmax() == label
  return hits / len(wanted)


CHANGES = {'alpha': 2.5, 'alpha_pace': 0.0, 'classifier.lr_scale': 30.0, 'classifier.weight_decay': 1e-2}


def test_conic_trains_as_the_plain_loop_does(oracle_config, monkeypatch):
  config = oracle_config('conic', **CHANGES, **{'eval.knn': True})
  with config.unlocked():
    config.small_views = ConfigDict({'count': 2, 'size': 8, 'crop': (0.05, 0.3)})
  knn = None
  for method, begin, summary, wanted in plain.trainings(config, learner_of, (1, 8), monkeypatch):
    if knn is None:
      params, stats, *_ = wanted.kept[-1]
      encode = jax.jit(method.network.encode)
      knn, of_random = (plain_knn(encode, variables, config) for variables in (
        {'params': params, 'batch_stats': stats}, train_step.variables(begin())))
    assert summary['knn_top1'] == knn != of_random
