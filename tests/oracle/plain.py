"""The plain loop that trainings are held against, and what compares the two.

Of the library it shares the network's forward pass (BYOL's predictor too), which images the sampler puts into
a batch, the views as the pipeline cuts them, the colours of a view by its key, and what a run starts with:
parameters, rows, queue and first window. Schedule, losses, rows, queues, averages, measures and the halving
of the loss scale are its own, written from the papers; the optimizer of the parameters is optax's.
"""
import functools
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
from support import reports_of

from conic_jax import methods, optim
from conic_jax.data import augment, pipeline, sources
from conic_jax.data.sampler import Sampler
from conic_jax.hardware import mesh as meshes
from conic_jax.pretraining import train_step, training
from conic_jax.pretraining.identity import run_identity
from conic_jax.run.checkpoints import Checkpoints

# The image that cannot be decoded: ids are in the order of sorted paths, all of class a first.
BROKEN = 4
# What a line of metrics.jsonl has beside figures of the step.
OF_THE_RUN = {'step', 'images_per_second', 'waiting_for_data'}


class Learner(NamedTuple):
  """What a method does, plainly. `own` is whatever it learns beside parameters and statistics.

  Attributes:
    begin: (state, params, stats) -> (own, stats), before the first step.
    objective: (params, stats, own, batch, key) -> (loss, (stats, report, seen)), differentiated in params.
    after: (own, params, seen, batch, rate, step) -> own, with the parameters of after the step.
    shown: own -> a tree of what is compared with what `found` gives.
    found: (method state, folder of the run, rates) -> the same of the library; rates are those of the steps
      so far, None for one that was skipped.
    before_step: (own, step, batch) -> own, before the objective.
  """
  begin: Callable
  objective: Callable
  after: Callable
  shown: Callable
  found: Callable
  before_step: Callable = lambda own, step, batch: own


class Close(NamedTuple):
  """How near two trainings must be.

  Attributes:
    figures: of one step: the difference over the larger of the value and 0.1.
    ties: of instance_top1: the difference itself.
    moved: of parameters and statistics: the norm of the difference over that of how far they moved.
    learned: of all else: the norm of the difference over that of the value.
    share: of the momentum: a leaf with a smaller share of the whole norm is compared with this share of it.
  """
  figures: float
  ties: float
  moved: float
  learned: float
  share: float


# Rounding depends on the CPU and grows from step to step, the faster the higher the rate. In float16 that of
# a small leaf comes from the large ones beside it, and two rows can be equally near to one view of a batch.
FLOAT32, FLOAT16 = Close(1e-3, 1e-4, 1e-3, 4e-3, 0), Close(0.03, 0.08, 0.05, 0.1, 0.05)


class Kept(NamedTuple):
  """What is compared with a checkpoint."""
  params: Any
  stats: Any
  opt_state: Any
  own: Any
  scale: float
  updates: int


class Trained(NamedTuple):
  """What a training leaves.

  Attributes:
    initial: what it began with, as `kept`.
    reports: the figures of each step.
    rates: of each step, None where it was skipped.
    kept: after each epoch.
  """
  initial: Kept
  reports: list[dict[str, float]]
  rates: list[float | None]
  kept: list[Kept]


def write_images(folder: Path, count: int, side: int = 20) -> None:
  """`count` images of noise to train on, one of which cannot be decoded, and 60 to test.

  Nothing tells the two classes apart, so that another encoder has another accuracy.
  """
  rng = np.random.default_rng(0)
  for split, number in (('train', count), ('test', 60)):
    for index in range(number):
      path = folder / split / 'ab'[index % 2] / f'{index:02d}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(path)
      if split == 'train' and index == 2 * BROKEN:
        undecodable = path
  undecodable.write_bytes(b'no image')


# ---- Plain mathematics ----------------------------------------------------------------------------


def rate(step: int, config: Any, steps_per_epoch: int) -> float:
  """Linear warm-up, then half a cosine to zero."""
  warm, total = (epochs * steps_per_epoch for epochs in (config.optimizer.warmup_epochs, config.epochs))
  peak = config.optimizer.learning_rate
  if step < warm:
    return peak * (step + 1) / warm
  return peak * (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2


def cosine_momentum(start: float, step: int, total: int) -> float:
  """From `start` to 1 by half a cosine."""
  return 1 - (1 - start) * (math.cos(math.pi * step / total) + 1) / 2


@jax.jit
def unit(vectors):
  return vectors / jnp.sqrt((vectors ** 2).sum(axis=-1, keepdims=True))


def mean_of(values, good):
  """The mean over good images of values [B] or [B, V]."""
  good = jnp.broadcast_to(good.reshape(-1, *[1] * (values.ndim - 1)), values.shape)
  return jnp.where(good, values, 0).sum() / good.sum().astype(values.dtype)


def classified(features, rows, temperature, own):
  """log e^{own} / Σ e^{…} over rows [N, D] of features [B, V, D], and whether the own row is the nearest.

  own: bool [B, N], one true in each row.
  """
  logits = unit(features) @ unit(rows).T / temperature
  own = own[:, None]
  return -jnp.where(own, jax.nn.log_softmax(logits), 0).sum(axis=2), nearest(logits, own)


def nearest(logits, own):
  """1 where the own row has the largest of logits [B, V, N], else 0: [B, V]; own is bool [B, 1, N]."""
  return (jnp.where(own, logits, 0).sum(axis=2) >= logits.max(axis=2)).astype(jnp.float32)


def consistency(features):
  """(1 − cos)² over all ordered pairs of the views of [B, V, D]: [B]."""
  cosines = jnp.einsum('bid,bjd->bij', unit(features), unit(features))
  count = features.shape[1]
  pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
  return sum((1 - cosines[:, i, j]) ** 2 for i, j in pairs) / len(pairs)


def row_sgd(loss_of, config):
  """The `after` of rows: PyTorch's momentum SGD at their own rate, of loss_of(rows, own, features, batch)."""
  settings = config.classifier

  @jax.jit
  def after(own, params, seen, batch, lr, step):
    gradient = jax.grad(loss_of)(own['rows'], own, seen['features'], batch)
    velocity = settings.momentum * own['velocity'] + gradient + settings.weight_decay * own['rows']
    return {**own, 'rows': own['rows'] - lr * settings.lr_scale * velocity, 'velocity': velocity}
  return after


def rows_of(rows, count):
  """The library's rows without those that pad them."""
  return {'rows': np.asarray(rows.weights)[:count], 'velocity': np.asarray(rows.momentum)[:count]}


def measures_of(features, good):
  """Alignment, uniformity and spread of features [B, V, D] of good images, in float64."""
  views = np.asarray(features, np.float64)[np.asarray(good)]
  views = views / np.linalg.norm(views, axis=-1, keepdims=True)
  count = views.shape[1]
  pairs = [((views[:, i] - views[:, j]) ** 2).sum(axis=1).mean() for i in range(count) for j in range(i)]
  first = views[:, 0]
  others = ~np.eye(len(first), dtype=bool)
  distances = ((first[:, None] - first[None]) ** 2).sum(axis=2)
  return {'alignment': np.mean(pairs) if pairs else 0.0,
          'uniformity': np.log(np.exp(-2 * distances)[others].mean()),
          'feature_std': (first * first.shape[1] ** 0.5).std(axis=0).mean()}


# ---- The plain loop -------------------------------------------------------------------------------


def project(method, params, stats, batch):
  """Features [B, V, D] of all views, each group a batch of its own."""
  groups = []
  for views in batch['views']:
    flat = views.reshape(-1, *views.shape[2:])
    features, stats = method.network.project(
      params, stats, flat, jnp.repeat(batch['valid'], views.shape[1]), 'batch')
    groups.append(features.reshape(*views.shape[:2], -1))
  return jnp.concatenate(groups, axis=1), stats


def augmented(batch: dict, groups: tuple, seed: int, round_number: int) -> dict:
  """The batch with the colours of its views: every view of an image has a key of its own."""
  views = coloured(batch['views'], batch['flip'], batch['id'], groups, seed, np.uint32(round_number))
  return {'views': views, 'id': jnp.asarray(batch['id']), 'valid': jnp.asarray(batch['valid'])}


@functools.partial(jax.jit, static_argnames=('groups', 'seed'))
def coloured(views, flip, ids, groups, seed, round_number):
  keys = augment.view_keys(seed, round_number, ids, sum(group.count for group in groups))
  found, first = [], 0
  for images, group in zip(views, groups, strict=True):
    own = slice(first, first := first + group.count)
    found.append(augment.augment(images, flip[:, own], keys[:, own], group))
  return tuple(found)


def batches_of(config: Any, source: Any, groups: tuple) -> Iterator[dict]:
  """The batches of a run, one after another."""
  sampler = Sampler(source.num_images, config.batch_size, config.seed, **config.sampler)
  drawn = pipeline.train_batches(source, groups, sampler, start_step=0, rows=np.arange(config.batch_size))
  per_round = (config.sampler.window or source.num_images) // config.batch_size
  for step, batch in enumerate(drawn):
    np.testing.assert_array_equal(batch['valid'], batch['id'] != BROKEN)
    yield augmented(batch, groups, config.seed, step // per_round)


def plain_training(config: Any, source: Any, method: Any, state: Any, learner: Learner) -> Trained:
  """Trains as `learner` says; in float16 with dynamic loss scaling from 2¹⁵."""
  steps_per_epoch = source.num_images // config.batch_size
  params, stats = state.params, state.batch_stats
  own, stats = learner.begin(state, params, stats)
  rates = [rate(step, config, steps_per_epoch) for step in range(config.epochs * steps_per_epoch)]
  decay = optax.add_decayed_weights(config.optimizer.weight_decay)
  # The rate comes after the momentum, as in PyTorch.
  direction = optax.chain(decay, optax.trace(config.optimizer.momentum))
  opt_state = jax.jit(direction.init)(params)
  scaled = config.dtype == 'float16'
  scale, skipped = (2.0 ** 15 if scaled else 1.0), 0

  @jax.jit
  def differentiate(params, stats, own, batch, key, scale):
    def scaled_loss(params):
      loss, rest = learner.objective(params, stats, own, batch, key)
      return loss * scale, (loss, *rest)
    grads, (loss, *rest) = jax.grad(scaled_loss, has_aux=True)(params)
    return jax.tree.map(lambda grad: grad / scale, grads), loss, *rest

  @jax.jit
  def descend(params, opt_state, grads, lr):
    updates, opt_state = direction.update(grads, opt_state, params)
    return jax.tree.map(lambda p, u: p - lr * u, params, updates), opt_state

  reports, kept, used = [], [], []
  initial = Kept(params, stats, opt_state, None, scale, 0)
  for step, (lr, batch) in enumerate(zip(rates, batches_of(config, source, method.views))):
    own = learner.before_step(own, step, batch)
    key = jax.random.fold_in(state.rng, step)
    grads, loss, after, report, seen = differentiate(params, stats, own, batch, key, scale)
    norm = math.sqrt(sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in jax.tree.leaves(grads)))
    report = {'loss': loss, **report, **measures_of(seen['features'], batch['valid']), 'learning_rate': lr,
              'grad_norm': norm, 'epoch': round((step + 1) / steps_per_epoch, 4)}
    if scaled:
      report['loss_scale'] = scale
    applied = not scaled or (math.isfinite(norm) and math.isfinite(loss))
    used.append(lr if applied else None)
    if not applied:
      scale, skipped = scale / 2, skipped + 1
    else:
      params, opt_state = descend(params, opt_state, grads, lr)
      stats = after
      own = learner.after(own, params, seen, batch, lr, step)
    if scaled:
      report['skipped'] = skipped
    reports.append(report)
    if (step + 1) % steps_per_epoch == 0:
      kept.append(Kept(params, stats, opt_state, learner.shown(own), scale, step + 1 - skipped))
  return Trained(initial, reports, used, kept)


# ---- What the library finds -----------------------------------------------------------------------


def trainings(config: Any, learner_of: Callable, device_counts: tuple[int, ...], monkeypatch: Any,
              close: Close = FLOAT32, wanted: Trained | None = None
              ) -> Iterator[tuple[Any, Callable, dict, Trained]]:
  """Trains on meshes of so many devices, and compares all with the plain loop.

  Args:
    config: of the run; its folder is the first of several.
    learner_of: (config, method, source) -> Learner.
    device_counts: of the meshes.
    monkeypatch: of the test.
    close: how near all must be.
    wanted: what the plain loop found before, of the same training in a run that keeps its state elsewhere.

  Yields:
    For each mesh the method, what makes the state before the first step, the summary, and what the plain
    loop found.
  """
  source = sources.open_source(config.data, config.data.train)
  dtype = jnp.dtype(config.dtype)
  run = config.run
  for count in device_counts:
    mesh = meshes.make_mesh(devices=jax.devices()[:count])
    method = methods.make(config, source.num_images, mesh, dtype)
    begin = jax.jit(functools.partial(
      train_step.init_state, method, optim.make_optimizer(config.optimizer), config.seed, dtype))
    learner = learner_of(config, method, source)
    if wanted is None:
      wanted = plain_training(config, source, method, begin(), learner)
    config.run = f'{run}_{count}'
    with monkeypatch.context() as patch:
      patch.setattr(meshes, 'make_mesh', lambda _, mesh=mesh: mesh)
      summary = training.pretrain(config)
    compare_reports(config, wanted, close)
    compare_checkpoints(config, wanted, source, method, begin, mesh, learner, close)
    yield method, begin, summary, wanted


def compare_reports(config: Any, wanted: Trained, close: Close) -> None:
  """Every figure of every step."""
  found = [line for line in reports_of(config.run) if 'loss' in line]
  assert [line['step'] for line in found] == list(range(1, len(wanted.reports) + 1))
  for line, figures, used in zip(found, wanted.reports, wanted.rates, strict=True):
    assert set(line) - OF_THE_RUN == set(figures)
    if used is None:
      assert not math.isfinite(line['grad_norm'] or math.nan)
      figures = {name: value for name, value in figures.items() if name != 'grad_norm'}
    for name, value in figures.items():
      allowed = close.ties if name == 'instance_top1' else close.figures * max(abs(float(value)), 0.1)
      assert abs(line[name] - float(value)) < allowed, (
        f'{name} of step {line["step"]}: {line[name]} is not {value}')


def compare_checkpoints(config: Any, wanted: Trained, source: Any, method: Any, begin: Any, mesh: Any,
                        learner: Learner, close: Close) -> None:
  """The whole state after every epoch that has a checkpoint."""
  shapes = begin.eval_shape()
  shardings = train_step.state_shardings(shapes, method, mesh)
  shapes = meshes.placed(shapes, shardings)
  sampler = Sampler(source.num_images, config.batch_size, config.seed, **config.sampler)
  steps_per_epoch = source.num_images // config.batch_size
  for epoch in range(len(wanted.kept), len(wanted.kept) - config.checkpoint.keep, -1):
    step, kept = epoch * steps_per_epoch, wanted.kept[epoch - 1]
    state = saved(config, shapes, sampler, step)
    assert (int(state.step), int(state.updates)) == (step, kept.updates)
    assert float(state.loss_scale.scale) == kept.scale
    initial, when = wanted.initial, f'after epoch {epoch}'
    compare(state.params, kept.params, f'parameters {when}', close.moved, initial.params)
    compare(state.batch_stats, kept.stats, f'statistics {when}', close.moved, initial.stats)
    compare(state.opt_state, kept.opt_state, f'momentum {when}', close.learned, share=close.share)
    found = learner.found(state.memories, Path(config.run), wanted.rates[:step])
    compare(found, kept.own, f'state {when}', close.learned)


def compare(found: Any, wanted: Any, what: str, close: float, initial: Any = None, share: float = 0) -> None:
  """Every leaf: integers exactly, all else relative to its norm, or to how far it moved from `initial`."""
  leaves, starts = jax.tree.leaves(wanted), jax.tree.leaves(initial)
  least = share and share * math.hypot(*(np.linalg.norm(np.asarray(leaf, np.float64)) for leaf in leaves))
  for index, (path, one) in enumerate(jax.tree.leaves_with_path(found)):
    one, two = np.asarray(one), np.asarray(leaves[index])
    name = f'{what}: {jax.tree_util.keystr(path)}'
    if np.issubdtype(two.dtype, np.integer):
      np.testing.assert_array_equal(one, two, err_msg=name)
      continue
    scale = np.linalg.norm(two - np.asarray(starts[index])) if starts else max(np.linalg.norm(two), least)
    assert np.linalg.norm(one - two) <= close * scale + 1e-6 * np.linalg.norm(two), (
      f'{name} differs by {np.linalg.norm(one - two) / max(scale, 1e-12):.2g}')
  assert len(leaves) == len(jax.tree.leaves(found))


def saved(config: Any, shapes: Any, sampler: Sampler, step: int) -> Any:
  """The state of a checkpoint; all later ones are removed."""
  folder = Path(config.run) / 'checkpoints'
  for path in folder.iterdir():
    if path.name.isdigit() and int(path.name) > step:
      shutil.rmtree(path)
  checkpoints = Checkpoints(folder, 3)
  state = checkpoints.restore(shapes, run_identity(config, sampler, jnp.dtype(config.dtype)))
  checkpoints.close()
  return state
