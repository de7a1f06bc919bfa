"""From the user's config to the run's: folders, the recipe's choices, and checks of impossible settings."""
import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from conic_jax import fields, methods, optim, recipe
from conic_jax.buckets.run_folder import RunFolder, run_folder
from conic_jax.data import pipeline
from conic_jax.data.sampler import Sampler
from conic_jax.data.sources import Source
from conic_jax.errors import UserError
from conic_jax.hardware import compiler
from conic_jax.hardware import mesh as meshes
from conic_jax.memories.host import HostSettings
from conic_jax.pretraining import gradients, train_step
from conic_jax.recipe import Facts
from conic_jax.run.loop import Phase, run_steps
from conic_jax.run.session import Session
from conic_jax.run.state import TrainState

Say = Callable[[str], None]

# A trial of training lasts this long and this many steps, more than are prepared ahead; with slow steps, at
# most _MOST_SECONDS.
_TRIED_SECONDS, _TRIED_STEPS, _MOST_SECONDS = 6.0, 10, 60.0


def check(config: Any) -> None:
  """Raises a `UserError` for values that no run can have, and for fields that cannot be open."""
  recipe.check_open(config)
  fields.check(config)
  if config.minutes and config.epochs is not None:
    raise UserError(f'config.minutes is {config.minutes:g} and config.epochs is {config.epochs}: minutes '
                    'choose the epochs. Give one of them: --config.epochs=auto leaves them to the minutes.')
  run_folder(config.run)  # Tells of a URL that is none of a bucket.


def choose_splits(config: Any) -> tuple[Any, list[recipe.Choice]]:
  """The config with open `data.train` and `data.test` chosen, or as its run began, and these choices."""
  kept = {choice.field: choice for choice in recipe.stored(_place(config), config)}
  choices = [kept.get(choice.field, choice) for choice in recipe.split_folders(config)]
  return recipe.apply(config, choices), choices


def settle(config: Any, source: Source, labelled: bool, mesh: Mesh, say: Say,
           splits: Sequence[recipe.Choice] = (), timed: bool = True) -> tuple[Any, dict[str, Any]]:
  """Fills in every open field of a config, and says which and why.

  A run that has begun keeps the values it began with.

  Args:
    config: the whole config.
    source: the training images.
    labelled: whether accuracies can be measured.
    mesh: the mesh.
    say: shows a line.
    splits: the choices made before, of folders and of the network that weights are of.
    timed: whether to time a trial of some seconds if the training's length must fit `config.minutes`.

  Returns:
    The config without open fields, and the content of 'recipe' in config.json.

  Raises:
    UserError: if the images or the given settings leave no choice.
  """
  if not recipe.open_fields(config):
    if splits:
      say(recipe.describe(list(splits)))
    return config, _reasons(splits) if splits else {}
  kept = recipe.stored(_place(config), config)
  if kept:
    say(f'Settings chosen when this run began: {len(kept)}, in {config.run}/config.json. They stay, so that '
        'it goes on as it began; for others give config.run a new name.')
    config = recipe.apply(config, kept)
  chosen: list[recipe.Choice] = []
  if recipe.open_fields(config):
    facts = recipe.look(source, labelled, config.seed)
    config, chosen, facts = _resolve(config, facts, source, mesh, timed)
    for warning in facts.warnings:
      say(f'Warning: {warning}')
    shown = [choice for choice in chosen if labelled or not choice.field.startswith('linear.')]
    if text := recipe.describe([*splits, *shown]):
      say(text)
    if facts.seconds_per_image and not config.max_steps:
      minutes = config.epochs * facts.num_images * facts.seconds_per_image / 60
      say(f'Training takes about {minutes:.2g} minutes here; evaluation and pictures follow.')
  return config, _reasons([*splits, *kept, *chosen])


def _place(config: Any) -> RunFolder:
  return run_folder(config.run, process=jax.process_index())


def _reasons(choices: Sequence[recipe.Choice]) -> dict[str, Any]:
  return {'reasons': sorted([choice.field, choice.reason] for choice in choices)}


def _resolve(config: Any, facts: Facts, source: Source, mesh: Mesh, timed: bool
             ) -> tuple[Any, list[recipe.Choice], Facts]:
  """`recipe.resolve`, repeated with the speed of a trial if the epochs must fit the minutes."""
  settled, choices = recipe.resolve(config, facts)
  if not (settled.minutes and recipe.is_open(config, 'epochs')):
    return settled, choices, facts
  if jax.process_count() > 1:
    if not recipe.is_open(config, 'minutes'):
      raise UserError('config.minutes is for one process: give several config.epochs.')
    config = recipe.apply(config, [recipe.Choice('minutes', 0.0, '')])
    return *recipe.resolve(config, facts), facts
  if timed:
    facts = dataclasses.replace(facts, seconds_per_image=seconds_per_image(settled, source, mesh))
    settled, choices = recipe.resolve(config, facts)
  return settled, choices, facts


def seconds_per_image(config: Any, source: Source, mesh: Mesh) -> float:
  """Seconds per image, measured by reading and training for some seconds and discarding the result.

  Args:
    config: without open fields.
    source: the training images.
    mesh: the mesh.
  """
  meshes.check_batch_size(config.batch_size, mesh)
  sampler = Sampler(source.num_images, config.batch_size, config.seed, **config.sampler)
  dtype = meshes.compute_dtype(config.dtype)
  method = methods.make(config, source.num_images, mesh, dtype)
  pipeline.check_views(source, method.views)
  optimizer = optim.make_optimizer(config.optimizer)
  init = lambda: train_step.init_state(method, optimizer, config.seed, dtype)
  shardings = train_step.state_shardings(jax.eval_shape(init), method, mesh)
  schedule = optim.make_schedule(config.optimizer, config.epochs, sampler.steps_per_epoch)
  step_fn = train_step.jit_step(
    train_step.make_step(method, optimizer, schedule, config.seed, sampler.steps_per_round, dtype,
                         gradients.chosen(config, method, mesh)),
    shardings, mesh)
  last_step = sampler.steps_per_epoch * config.epochs
  trial = _Trial()
  with tempfile.TemporaryDirectory() as folder, Session(Path(folder), mesh) as session:
    state = jax.jit(init, out_shardings=shardings, compiler_options=compiler.options_of_one_run(
      mesh.devices.flat[0].platform))()
    host_settings = HostSettings(
      folder=session.folder, batch_size=config.batch_size, last_step=last_step, save_every=last_step,
      batch_ids=sampler.batch_ids, keep=2)
    hosts = session.open_hosts(method.memories, state.memories, host_settings, 0, True)
    phase = Phase(
      name=' of a trial', step=step_fn, last_step=last_step, batch_size=config.batch_size,
      batches=train_step.training_batches(source, method, sampler, mesh),
      undecodable=pipeline.UndecodableImages(source), unread=('label',), hosts=hosts, log_every=1,
      report=trial.report)
    with contextlib.suppress(_Enough):
      run_steps(phase, state, session)
  return trial.seconds_per_step / config.batch_size


class _Enough(Exception):
  """Raised when a trial has run long enough."""


class _Trial:
  """Times steps, and ends the trial after a while."""

  def __init__(self):
    self._begun = self.seconds_per_step = 0.0

  def report(self, state: TrainState, done: int, figures: dict[str, float]) -> None:
    """Times a step; the first one compiles, and the pipeline's first batches are ready by its end."""
    del state, figures
    now = time.perf_counter()
    if done == 1:
      self._begun = now
      return
    self.seconds_per_step = (now - self._begun) / (done - 1)
    if now - self._begun > (_TRIED_SECONDS if done > _TRIED_STEPS else _MOST_SECONDS):
      raise _Enough
