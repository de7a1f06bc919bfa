"""The training loop, read from top to bottom: `pretrain`. The step is `train_step.make_step`."""
import contextlib
import dataclasses
import functools
import json
import math
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from conic_jax import __version__, methods, optim, settings, verdict
from conic_jax import mesh as meshes
from conic_jax.checkpoint import Checkpoints
from conic_jax.companion import Run
from conic_jax.data import pipeline, sources
from conic_jax.data.sampler import Sampler
from conic_jax.errors import Stopped, UserError
from conic_jax.evals import probe as probes
from conic_jax.evals import protocols
from conic_jax.methods import Method
from conic_jax.metrics import Reporter, write_json
from conic_jax.state import TrainState
from conic_jax.stop import StopRequest
from conic_jax.train_step import (
  augment_batch,
  init_state,
  jit_before_epoch,
  jit_step,
  make_step,
  state_shardings,
  variables,
)

# Steps that may be under way on the device while the host prepares the next.
_STEPS_AHEAD = 2
# The epoch that names the order and the views of the pass before training.
_PASS_EPOCH = 2**32 - 2
_SAVES_IN_A_PASS = 10


def pretrain(config: Any) -> dict[str, Any]:
  """Pretrains an encoder, evaluates it, and leaves all of it in the run folder.

  Running it again with the same config goes on from the last checkpoint.

  Args:
    config: the whole config; see configs/conic.py.

  Returns:
    What summary.json holds.

  Raises:
    UserError: whatever the user can mend.
    Stopped: after Ctrl-C or SIGTERM, when all is saved.
  """
  with contextlib.ExitStack() as at_the_end, StopRequest() as stop:
    return _pretrain(config, at_the_end, stop)


def _pretrain(config: Any, at_the_end: contextlib.ExitStack, stop: StopRequest) -> dict[str, Any]:
  settings.check(config)
  run = Path(config.run)
  first_process = jax.process_index() == 0
  say = (lambda line: print(line, flush=True)) if first_process else (lambda line: None)

  # ---- Data -------------------------------------------------------------------------------------
  mesh = meshes.make_mesh(config.mesh)
  config, splits = settings.choose_splits(config)
  train_source = sources.open_source(config.data, config.data.train)
  test_source = sources.open_source(config.data, config.data.test) if config.data.test else None
  labelled = protocols.has_labels(train_source, test_source)
  config, recipe = settings.settle(config, train_source, labelled, mesh, say, splits)
  meshes.check_batch_size(config.batch_size, mesh)
  protocols.check(train_source, test_source, config, mesh)
  num_images = train_source.num_images
  if config.num_instances not in (0, num_images):
    raise UserError(f'config.num_instances is {config.num_instances} and the data set has {num_images} '
                    'images: it is for python -m conic_jax.plan; leave it 0 here.')
  sampler = Sampler(num_images, config.batch_size, config.seed, **config.sampler)
  steps_per_epoch = sampler.steps_per_epoch
  total_steps = steps_per_epoch * config.epochs
  last_step = min(total_steps, config.max_steps or total_steps)

  # ---- Method, optimizer, state -----------------------------------------------------------------
  dtype = meshes.compute_dtype(config.dtype)
  method = methods.make(config, num_images, mesh, dtype)
  knn_encode = method.embed if protocols.features_name(config) == 'head' else method.encode
  pipeline.check_views(train_source, method.views)
  optimizer = optim.make_optimizer(config.optimizer)
  schedule = optim.make_schedule(config.optimizer, config.epochs, steps_per_epoch)
  init = lambda: init_state(method, optimizer, config.seed, dtype)
  shapes = jax.eval_shape(init)
  shardings = state_shardings(shapes, method, mesh)

  # ---- Restore or begin -------------------------------------------------------------------------
  if first_process:
    run.mkdir(parents=True, exist_ok=True)
  keep = max(2, config.checkpoint.keep)  # The newest may turn out bad.
  checkpoints = Checkpoints(run / 'checkpoints', keep)
  at_the_end.callback(checkpoints.close)
  identity = run_identity(config, sampler, dtype)
  description = {**describe(config), **({'recipe': recipe} if recipe else {})}
  abstract = meshes.placed(shapes, shardings)
  state = checkpoints.restore(abstract, identity)
  first_step = 0 if state is None else int(state.step)
  reporter = Reporter(run, first_step=first_step, total_steps=last_step, active=first_process)
  at_the_end.callback(reporter.close)
  reporter.say(f'{config.method}: {num_images} images, {steps_per_epoch} steps an epoch, '
               f'{mesh.size} {jax.devices()[0].device_kind} device(s), {jnp.dtype(dtype).name}'
               + (f', going on from step {first_step}' if state is not None else ''))
  for notice in filter(None, (sampler.notice, method.notice)):
    reporter.say(notice)
  save_every = max(1, round(config.checkpoint.every_epochs * steps_per_epoch))
  companion = method.companion(Run(
    folder=run / 'store', batch_size=config.batch_size, last_step=last_step, save_every=save_every,
    batch_ids=sampler.batch_ids, keep=keep))
  at_the_end.callback(companion.close)
  rejects = pipeline.Rejects(train_source)
  fresh = state is None
  if state is None:
    begin = jax.jit(init, out_shardings=shardings)
    if first_process:
      write_json(run / 'config.json', description)
    if method.passes_before_training:
      state = pass_before_training(method, begin, abstract, train_source, config, mesh, identity, rejects,
                                   stop, reporter.say)
      checkpoints.save(state, 0, identity)
      checkpoints.wait()
    else:
      state = begin()
  if first_process and checkpoints.last_step() is not None:
    shutil.rmtree(run / 'before_training', ignore_errors=True)
  on_all_processes(lambda: companion.start(state, first_step, fresh))
  if first_process:
    write_json(run / 'config.json', description)

  # ---- What to be better than --------------------------------------------------------------------
  random_variables = jax.jit(lambda: variables(init()), out_shardings=meshes.replicated(mesh))
  probe = probes.make(method.views[0], train_source, config, last_step, mesh)
  if first_step == 0:
    initial = random_variables()
    reporter.report(0, 0.0, probes.baselines(probe, method.encode, initial) | protocols.knn_baselines(
      knn_encode, initial, train_source, test_source, config, mesh))
    del initial

  # ---- The loop ---------------------------------------------------------------------------------
  step_fn = jit_step(
    make_step(method, optimizer, schedule, config.seed, sampler.steps_per_round, dtype), shardings, mesh)
  prepare_epoch = jit_before_epoch(method, shardings)
  batches = pipeline.train_batches(
    train_source, method.views, batch_size=config.batch_size, seed=config.seed,
    start_step=first_step, rows=meshes.process_rows(mesh, config.batch_size), **config.sampler)
  pending: list[tuple[int, dict[str, jax.Array]]] = []
  window_start, window_step, waited = time.perf_counter(), first_step, 0.0

  with stop.between_steps():
    for step in range(first_step, last_step):
      if step % steps_per_epoch == 0 and method.prepares_epochs:
        state = prepare_epoch(state)
      wait_start = time.perf_counter()
      batch = next(batches)
      waited += time.perf_counter() - wait_start
      rejects.add(batch)
      batch.pop('label')
      inputs = meshes.to_global(batch, mesh)
      if exchange := companion.prepare(step):
        inputs['exchange'] = exchange
      state, metrics, outgoing = step_fn(state, inputs)
      companion.commit(step, outgoing)
      pending.append((step + 1, metrics))
      if len(pending) > _STEPS_AHEAD:
        jax.block_until_ready(pending[-1 - _STEPS_AHEAD][1]['loss'])
      done = step + 1
      reporter.advance(done)

      reporting = done % config.log_every == 0 or done in probe.steps | {first_step + 1, last_step}
      comparing = config.knn_every and done % (config.knn_every * steps_per_epoch) == 0
      saving = done % save_every == 0 or done == last_step
      stopping = stop.agreed(now=reporting)
      if reporting or saving or stopping:
        figures = finite_metrics(pending, checkpoints, config)
        pending.clear()
        rejects.check()
      if reporting:
        if done > first_step + 1:  # The first step is compilation.
          seconds = time.perf_counter() - window_start
          figures['images_per_second'] = (done - window_step) * config.batch_size / seconds
          figures['waiting_for_data'] = waited / seconds
        if done in probe.steps:
          figures |= probes.loss_share(method.chance, figures)
          figures |= probes.measure(probe, [(method.encode, variables(state))])[0]
          figures |= verdict.next_word(reporter.reports, done, done / steps_per_epoch, figures, config,
                                       reporter.say)
        reporter.report(done, done / steps_per_epoch, figures)
      if comparing:
        accuracies = protocols.online_knn(knn_encode, variables(state), train_source, test_source,
                                          config, mesh)
        if accuracies:
          reporter.report(done, done / steps_per_epoch, accuracies)
      if saving or stopping:
        check_finite_params(state, done, checkpoints, config)
        checkpoints.wait()
        on_all_processes(lambda done=done: companion.checkpoint(done, checkpoints.steps()))
        checkpoints.save(state, done, identity)
      if stopping:
        checkpoints.wait()
        raise Stopped(stopping, f'stopped at step {done}; {checkpoints.outcome()}')
      if reporting or comparing:
        window_start, window_step, waited = time.perf_counter(), done, 0.0

  checkpoints.wait()
  if left_out := rejects.report():
    reporter.say(left_out)

  # ---- Evaluation and pictures ------------------------------------------------------------------
  summary = {'step': int(state.step), 'num_images': num_images}
  summary |= verdict.of_summary(reporter.reports, config)
  summary |= protocols.evaluate(method.encode, knn_encode, variables(state), random_variables,
                                train_source, test_source, config, mesh, say=reporter.say, probe=probe)
  failure = checkpoints.failure or reporter.failure
  if first_process and not failure:
    try:
      write_json(run / 'summary.json', summary)
    except OSError as error:
      failure = str(error)
  try:
    protocols.draw(method.encode, variables(state), train_source, test_source, config, mesh, run,
                   say=reporter.say)
  except OSError as error:
    failure = failure or str(error)
  if failure:
    raise UserError(f'The training ended, but not all of it could be saved ({failure}): the last good '
                    f'checkpoint is {checkpoints.last_path()}. Free room on the disk and run the same '
                    'command again to go on from it.')
  return summary


def pass_before_training(method: Method, begin: Callable[[], TrainState], shapes: TrainState,
                         source: sources.Source, config: Any, mesh: jax.sharding.Mesh,
                         identity: dict[str, Any], rejects: pipeline.Rejects, stop: StopRequest,
                         say: Callable[[str], None]) -> TrainState:
  """Shows the method every image once before training; goes on where an interrupted pass was saved.

  Args:
    method, source, config, mesh: of the run.
    begin: makes the state before the first step; shapes: its shapes, with their shardings.
    identity: as for the run's checkpoints. Those of the pass are in `before_training/`.
    rejects, stop: of the run.
    say: shows a line.
  """
  checkpoints = Checkpoints(Path(config.run) / 'before_training', keep=1)
  own = {name: json_value(config[name]) for name in ('prior', 'views') if name in config}
  state = checkpoints.restore(shapes, identity | own)
  if state is None:
    state = begin()
  first, last = int(state.step), -(-source.num_images // config.batch_size)
  view = (dataclasses.replace(method.views[0], count=1),)
  batches = pipeline.whole_pass_batches(
    source, view, batch_size=config.batch_size, seed=config.seed, epoch=_PASS_EPOCH,
    start_step=first, rows=meshes.process_rows(mesh, config.batch_size))
  shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=shardings,
                     in_shardings=(shardings, meshes.batch_sharding(mesh)))
  def step_fn(state, batch):
    batch = augment_batch(view, batch, config.seed, jnp.uint32(_PASS_EPOCH))
    return method.before_training(state, batch).replace(step=state.step + 1)

  say(f'A pass over every image comes first: {last} steps' + (f', from step {first}' if first else ''))
  save_every = max(1, last // _SAVES_IN_A_PASS)
  with stop.between_steps():
    for step in range(first, last):
      batch = next(batches)
      rejects.add(batch)
      batch.pop('label')
      inputs = meshes.to_global(batch, mesh)
      jax.block_until_ready(state.step)
      state = step_fn(state, inputs)
      done = step + 1
      reporting = done % config.log_every == 0
      stopping = stop.agreed(now=reporting)
      if reporting:
        rejects.check()
        say(f'step {done}/{last} of the pass')
      if stopping or (done % save_every == 0 and done < last):
        checkpoints.save(state, done, identity | own)
      if stopping:
        checkpoints.wait()
        raise Stopped(stopping, f'stopped at step {done} of the pass before training; '
                                f'{checkpoints.outcome()}')
  rejects.check()
  checkpoints.close()
  initial = jax.jit(lambda: begin().batch_stats, out_shardings=meshes.replicated(mesh))()
  return method.after_pass(state.replace(step=jnp.zeros_like(state.step)), initial)


def on_all_processes(action: Callable[[], None]) -> None:
  """Does something of the host's on every process; where it fails on one, all of them stop.

  Raises:
    UserError: on the others; on the one, what the action raised.
  """
  failure: Exception | None = None
  try:
    action()
  except Exception as error:
    failure = error
  if jax.process_count() > 1:
    failed = multihost_utils.process_allgather(np.bool_(failure is not None))
    if failure is None and failed.any():
      raise UserError(f'Process {int(np.flatnonzero(failed)[0])} could not go on: its own message says why.')
  if failure is not None:
    raise failure


def finite_metrics(pending: list[tuple[int, dict[str, jax.Array]]], checkpoints: Checkpoints,
                   config: Any) -> dict[str, float]:
  """The metrics of the last pending step, after a look that no loss since was NaN or infinite.

  Raises:
    UserError: with the step, the last good checkpoint and the settings to look at. An overflow in
      float16 is no such case, as long as the loss scale can still fall.
  """
  for step, metrics in (fetched := jax.device_get(pending)):
    excused = metrics.get('overflow', False) and metrics['loss_scale'] > 1
    if not excused:
      for name in ('loss', 'grad_norm'):
        _check_finite(name, metrics[name], step, checkpoints, config)
  return {name: float(value) for name, value in fetched[-1][1].items() if name != 'overflow'}


def check_finite_params(state: TrainState, step: int, checkpoints: Checkpoints, config: Any) -> None:
  """Raises as `finite_metrics` where a parameter, a statistic or a row is NaN or infinite."""
  if not all_finite((state.params, state.batch_stats, state.method_state)):
    _stop_for('largest parameter', math.inf, step, checkpoints, config)


@jax.jit
def all_finite(tree: Any) -> jax.Array:
  """Whether no float of a tree is NaN or infinite: bool []."""
  floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))


def _check_finite(name: str, value: float, step: int, checkpoints: Checkpoints, config: Any) -> None:
  if math.isfinite(value):
    return
  checkpoints.discard(step - 1)  # It was this step's state, that a finite loss had led to.
  _stop_for(name, value, step, checkpoints, config)


def _stop_for(name: str, value: float, step: int, checkpoints: Checkpoints, config: Any) -> NoReturn:
  raise UserError(
    f'The {name} was {value} at step {step}; the last good checkpoint is {checkpoints.last_path()}, '
    'where the same command goes on. Likely: config.optimizer.learning_rate '
    f'{config.optimizer.learning_rate} is too high (try a third), config.optimizer.warmup_epochs '
    f'{config.optimizer.warmup_epochs:g} is too short, or config.dtype {config.dtype} is too narrow (try '
    'float32).')


def run_identity(config: Any, sampler: Sampler, dtype: jnp.dtype) -> dict[str, Any]:
  """What a resumed run must share with its checkpoint, beside the shapes."""
  # Whether there is a bias the shapes tell: runs of before the setting go on.
  head = {name: value for name, value in json_value(config.head).items() if name != 'output_bias'}
  return {'method': config.method, 'num_images': sampler.num_images, 'config.seed': config.seed,
          'config.dtype': jnp.dtype(dtype).name,
          'config.batch_size': config.batch_size, 'config.encoder': json_value(config.encoder),
          'config.head': head, 'config.data.name': config.data.name,
          'config.data.train': config.data.train,
          'config.sampler': json_value(config.sampler) if sampler.slides else None}


def json_value(node: Any) -> Any:
  """A config node as JSON holds it."""
  return json.loads(node.to_json_best_effort())


def describe(config: Any) -> dict[str, Any]:
  """The resolved config with the versions that it runs under, for config.json."""
  versions = {'conic_jax': __version__, 'jax': jax.__version__, 'optax': optax.__version__,
              'numpy': np.__version__, 'python': platform.python_version(),
              'device': jax.devices()[0].device_kind}
  return {**json_value(config), 'versions': versions}
