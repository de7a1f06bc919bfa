"""Pretraining beside a plain loop that shares the network's forward pass and the views with it, and no more.

The loop has a schedule, a softmax over dense rows, their SGD, losses and measures of its own, written from
the papers; the optimizer is optax's. Whatever the library reports or saves must be what the loop finds.
"""
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from PIL import Image

from conic_jax import mesh as meshes
from conic_jax import methods, optim, train, train_step
from conic_jax.checkpoint import Checkpoints
from conic_jax.data import pipeline, sources
from conic_jax.data.sampler import Sampler
from conic_jax.views import Views

IMAGES, BROKEN = 22, 9
STEPS_PER_EPOCH = 2
# Figures of one step; rounding grows from step to step.
CLOSE = {'rtol': 1e-3, 'atol': 1e-4}


@pytest.fixture
def config(tiny_config, tmp_path):
  """ConIC on 22 images, one of which cannot be decoded: two groups of views, three checkpoints."""
  rng = np.random.default_rng(0)
  for split, count in (('train', IMAGES), ('test', 60)):
    for index in range(count):
      path = tmp_path / 'images' / split / 'ab'[index % 2] / f'{index:02d}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      # Nothing tells the classes apart, so that another encoder has another accuracy.
      Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
  (tmp_path / 'images' / 'train' / 'ab'[BROKEN % 2] / f'{BROKEN:02d}.png').write_bytes(b'no image')
  config = tiny_config
  config.data.dir = str(tmp_path / 'images')
  config.batch_size, config.epochs = 8, 3
  config.alpha, config.classifier.lr_scale = 2.5, 30.0
  config.optimizer.learning_rate, config.optimizer.warmup_epochs = 0.03, 1
  config.optimizer.weight_decay = config.classifier.weight_decay = 1e-2
  config.checkpoint.every_epochs, config.checkpoint.keep = 1.0, 3
  config.knn_every, config.eval.k, config.eval.linear = 0, (3,), False
  with config.unlocked():
    config.small_views = ConfigDict({'count': 2, 'size': 8, 'crop': (0.05, 0.3)})
  return config


# ---- The plain loop -------------------------------------------------------------------------------


def rate(step, config):
  """Linear warm-up, then half a cosine to zero."""
  warm = config.optimizer.warmup_epochs * STEPS_PER_EPOCH
  total = config.epochs * STEPS_PER_EPOCH
  peak = config.optimizer.learning_rate
  if step < warm:
    return peak * (step + 1) / warm
  return peak * (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2


def unit(vectors):
  return vectors / jnp.sqrt((vectors ** 2).sum(axis=-1, keepdims=True))


def cross_entropies(features, rows, ids, config):
  """−log softmax of the own class over all rows, [B, V], and whether the own class has the largest."""
  logits = unit(features) @ unit(rows).T / config.temperature
  own = jnp.arange(len(rows))[None, None] == ids[:, None, None]
  return -jnp.where(own, jax.nn.log_softmax(logits), 0).sum(axis=2), logits.argmax(axis=2) == ids[:, None]


def losses_of(features, rows, ids, good, config):
  """The instance loss, and the consistency loss over all pairs of views, of good images."""
  instance, hit = cross_entropies(features, rows, ids, config)
  cosines = jnp.einsum('bid,bjd->bij', unit(features), unit(features))
  count = features.shape[1]
  pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
  consistency = sum((1 - cosines[:, i, j]) ** 2 for i, j in pairs) / len(pairs)
  return instance[good].mean(), consistency[good].mean(), hit[good].mean()


def measures_of(features, good):
  """Alignment, uniformity and spread of the features of good images."""
  views = unit(np.asarray(features)[good])
  count = views.shape[1]
  alignment = np.mean([((views[:, i] - views[:, j]) ** 2).sum(axis=1).mean()
                       for i in range(count) for j in range(i)])
  first = views[:, 0]
  others = ~np.eye(len(first), dtype=bool)
  distances = ((first[:, None] - first[None]) ** 2).sum(axis=2)
  return {'alignment': alignment, 'uniformity': np.log(np.exp(-2 * distances)[others].mean()),
          'feature_std': (first * first.shape[1] ** 0.5).std(axis=0).mean()}


def project(method, params, stats, batch):
  """Features [B, V, D] of all views, each group a batch of its own."""
  groups = []
  for views in batch['views']:
    flat = views.reshape(-1, *views.shape[2:])
    features, stats = method.network.project(
      params, stats, flat, jnp.repeat(batch['valid'], views.shape[1]), 'batch')
    groups.append(features.reshape(*views.shape[:2], -1))
  return jnp.concatenate(groups, axis=1), stats


def objective(params, stats, rows, batch, method, config):
  """The loss, and all that is measured of it."""
  features, stats = project(method, params, stats, batch)
  instance, consistency, hit = losses_of(features, rows, batch['id'], np.asarray(batch['valid']), config)
  loss = instance + config.alpha * consistency
  return loss, (features, stats, {'loss': loss, 'loss_instance': instance, 'loss_consistency': consistency,
                                  'instance_top1': hit})


def of_rows(rows, features, batch, config):
  """What the rows learn from: small views teach the encoder alone, and the mean is that over all views."""
  instance, _ = cross_entropies(features, rows, batch['id'], config)
  good = instance[np.asarray(batch['valid'])]
  return good[:, :config.views.count].sum() / good.size


def plain_training(config, source, method, state):
  """All reports, and parameters, statistics and rows after every epoch."""
  params, stats = state.params, state.batch_stats
  rows = jnp.asarray(state.method_state['rows'].weights)[:IMAGES]
  velocity = jnp.zeros_like(rows)
  rates = [rate(step, config) for step in range(config.epochs * STEPS_PER_EPOCH)]
  optimizer = optax.chain(optax.add_decayed_weights(config.optimizer.weight_decay),
                          optax.sgd(lambda step: jnp.array(rates)[step], momentum=config.optimizer.momentum))
  opt_state, reports, kept = optimizer.init(params), [], []
  batches = pipeline.train_batches(source, method.views, batch_size=config.batch_size, seed=config.seed,
                                   start_step=0, rows=np.arange(config.batch_size))
  for step, lr in enumerate(rates):
    batch = train_step.augment_batch(method.views, {**next(batches)}, config.seed,
                                     jnp.uint32(step // STEPS_PER_EPOCH))
    (_, (features, after, report)), grads = jax.value_and_grad(objective, has_aux=True)(
      params, stats, rows, batch, method, config)
    row_grads = jax.grad(of_rows)(rows, features, batch, config)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params, stats = optax.apply_updates(params, updates), after
    sgd = config.classifier
    velocity = sgd.momentum * velocity + row_grads + sgd.weight_decay * rows
    rows = rows - lr * sgd.lr_scale * velocity
    norm = math.sqrt(sum(float((leaf ** 2).sum()) for leaf in jax.tree.leaves(grads)))
    reports.append({**report, 'learning_rate': lr, 'grad_norm': norm,
                    **measures_of(features, np.asarray(batch['valid']))})
    if (step + 1) % STEPS_PER_EPOCH == 0:
      kept.append((params, stats, rows))
  return reports, kept


def plain_knn(method, variables, train_source, test_source, config):
  """The share of test images whose class has most votes among their nearest training images."""
  views = Views(**config.views)

  def encoded(source):
    found, labels = [], []
    for batch in pipeline.eval_batches(source, size=config.views.size, resize=config.eval.resize,
                                       batch_size=1, rows=np.arange(1)):
      if batch['valid'][0]:
        image = (batch['views'][0][:, 0] / 255 - np.array(views.mean)) / np.array(views.std)
        found.append(np.asarray(unit(method.encode(variables, jnp.asarray(image, jnp.float32))))[0])
        labels.append(int(batch['label'][0]))
    return np.array(found), np.array(labels)

  (bank, labels), (queries, wanted) = encoded(train_source), encoded(test_source)
  hits = 0
  for row, label in zip(queries @ bank.T, wanted, strict=True):
    nearest = np.argsort(-row)[:config.eval.k[0]]
    votes = np.bincount(labels[nearest], np.exp(row[nearest] / 0.07), minlength=2)
    hits += votes.argmax() == label
  return hits / len(wanted)


# ---- What the library finds -----------------------------------------------------------------------


def saved(config, method, shapes, sampler, step):
  """The state of a checkpoint, all later ones put aside."""
  folder = Path(config.run) / 'checkpoints'
  for path in folder.iterdir():
    if path.name.isdigit() and int(path.name) > step:
      shutil.rmtree(path)
  checkpoints = Checkpoints(folder, 3)
  state = checkpoints.restore(shapes, train.run_identity(config, sampler, jnp.dtype('float32')))
  checkpoints.close()
  return state


def assert_close(found, wanted, what):
  for (path, one), two in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(one, two, **CLOSE, err_msg=f'{what}{jax.tree_util.keystr(path)}')


@pytest.mark.parametrize('devices', [1, 8])
def test_conic_trains_as_the_plain_loop_does(config, devices, monkeypatch):
  mesh = meshes.make_mesh(devices=jax.devices()[:devices])
  monkeypatch.setattr(meshes, 'make_mesh', lambda _: mesh)
  train_source, test_source = (sources.open_source(config.data, config.data[split])
                               for split in ('train', 'test'))
  method = methods.make(config, IMAGES, mesh, jnp.dtype('float32'))
  begin = lambda: train_step.init_state(method, optim.make_optimizer(config.optimizer), config.seed,
                                        jnp.dtype('float32'))
  wanted, epochs = plain_training(config, train_source, method, begin())

  summary = train.pretrain(config)
  lines = [json.loads(line) for line in (Path(config.run) / 'metrics.jsonl').read_text().splitlines()]
  found = [line for line in lines if 'loss' in line]
  assert [line['step'] for line in found] == list(range(1, 7))
  for line, figures in zip(found, wanted, strict=True):
    for name, value in figures.items():
      np.testing.assert_allclose(line[name], value, **CLOSE, err_msg=f'{name} of step {line["step"]}')
  params, stats, _ = epochs[-1]
  knn, of_random = (plain_knn(method, variables, train_source, test_source, config) for variables in (
    {'params': params, 'batch_stats': stats}, train_step.variables(begin())))
  assert summary['knn_top1'] == knn != of_random

  shapes = jax.eval_shape(begin)
  shardings = train_step.state_shardings(shapes, method, mesh)
  shapes = jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(
    leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings)
  sampler = Sampler(IMAGES, config.batch_size, config.seed, **config.sampler)
  for epoch in (3, 2, 1):
    params, stats, rows = epochs[epoch - 1]
    state = saved(config, method, shapes, sampler, epoch * STEPS_PER_EPOCH)
    assert int(state.step) == epoch * STEPS_PER_EPOCH
    assert_close(state.params, params, f'parameters after epoch {epoch}: ')
    assert_close(state.batch_stats, stats, f'statistics after epoch {epoch}: ')
    assert_close(np.asarray(state.method_state['rows'].weights)[:IMAGES], rows, f'rows after epoch {epoch}')
