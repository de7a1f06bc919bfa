"""Pretraining: read `pretrain` from top to bottom. Its loop is `run.loop.run_steps`."""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from conic_jax import methods, optim, recipe
from conic_jax.buckets.run_folder import run_folder
from conic_jax.data import inventory, pipeline, sources
from conic_jax.data.sampler import Sampler
from conic_jax.errors import UserError, listed
from conic_jax.evals import probe as probes
from conic_jax.evals import protocols
from conic_jax.evals.encoders import Encoder
from conic_jax.evals.features import Encode, FrozenEncoder
from conic_jax.hardware import compiler
from conic_jax.hardware import mesh as meshes
from conic_jax.hardware.processes import run_everywhere
from conic_jax.home import expand_config
from conic_jax.memories.host import HostSettings, HostSide
from conic_jax.methods import Method
from conic_jax.methods.method import InitialPass
from conic_jax.pretraining import gradients, settings, warm_start
from conic_jax.pretraining.gradients import Gradients
from conic_jax.pretraining.identity import changes, describe, json_value, run_identity
from conic_jax.pretraining.train_step import (
  augment_batch,
  init_state,
  jit_before_epoch,
  jit_step,
  make_step,
  state_shardings,
  training_batches,
  variables,
)
from conic_jax.run import verdict
from conic_jax.run.checkpoints import Checkpoints
from conic_jax.run.claim import reason
from conic_jax.run.json_file import read_json, write_json
from conic_jax.run.loggers import open_loggers
from conic_jax.run.loop import Figures, Phase, run_steps
from conic_jax.run.reporter import Reporter
from conic_jax.run.session import Session
from conic_jax.run.state import TrainState
from conic_jax.run.trace import Trace
from conic_jax.run.wandb_log import open_wandb

# The epoch number that the order and the views of the initial pass depend on.
PASS_EPOCH = 2**32 - 2
_SAVES_IN_A_PASS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
  """A run's images: `test` is None without a test set; the sampler chooses the images of each batch."""
  train: sources.Source
  test: sources.Source | None
  sampler: Sampler


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Task:
  """Everything that defines a pretraining, before its first step.

  Attributes:
    config: without open fields; description: the content of config.json.
    data: the images.
    method, optimizer, schedule, dtype, gradients: the settings of the training.
    mesh: the mesh.
    init: creates the state before the first step; the same function wherever it is compiled, so that it is
      traced once.
    shapes: the train state's shapes, with shardings.
    last_step: steps done at its end.
    identity: what a resumed run must match.
    knn_encode: computes the features that kNN compares.
    start: the encoder that training starts from; None for a random one.
  """
  config: Any
  description: dict[str, Any]
  data: Data
  method: Method
  optimizer: optax.GradientTransformationExtraArgs
  schedule: optim.Schedule
  dtype: jnp.dtype
  gradients: Gradients
  mesh: Mesh
  init: Callable[[], TrainState]
  shapes: TrainState
  last_step: int
  identity: dict[str, Any]
  knn_encode: Encode
  start: Encoder | None

  @property
  def shardings(self) -> TrainState:
    """Shardings of the train state."""
    return jax.tree.map(lambda leaf: leaf.sharding, self.shapes)

  @property
  def keep(self) -> int:
    """Number of checkpoints kept, at least two: the newest may turn out bad."""
    return max(2, self.config.checkpoint.keep)

  @property
  def save_every(self) -> int:
    """Steps between two checkpoints."""
    return max(1, round(self.config.checkpoint.every_epochs * self.data.sampler.steps_per_epoch))

  def begin(self) -> TrainState:
    """The state before the first step, with the weights that it starts from if there are any."""
    state = self.jit_of_one_run(self.init, self.shardings)()
    return warm_start.begin_from(self.start, state, self.method, self.mesh) if self.start else state

  def initial_statistics(self) -> dict[str, Any]:
    """The batch-norm statistics of `begin`."""
    everywhere = meshes.replicated(self.mesh)
    initial = self.jit_of_one_run(lambda: jax.jit(self.init)().batch_stats, everywhere)()
    own = {'encoder': jax.device_put(self.start.variables['batch_stats'], everywhere)} if self.start else {}
    return initial | own

  def random_variables(self, untrained: TrainState | None) -> Callable[[], dict[str, Any]]:
    """What creates the variables of the random network, replicated.

    Args:
      untrained: a state with random parameters, whose variables the host keeps a copy of, rather than
        compiling what draws them; None if there is none.
    """
    everywhere = meshes.replicated(self.mesh)
    drawn = untrained and variables(untrained)
    if drawn and all(leaf.is_fully_replicated for leaf in jax.tree.leaves(drawn)):
      kept = jax.device_get(drawn)
      return lambda: jax.device_put(kept, everywhere)
    return self.jit_of_one_run(lambda: variables(jax.jit(self.init)()), everywhere)

  def jit_of_one_run(self, make: Callable[[], Any], shardings: Any) -> Callable[[], Any]:
    """`jax.jit` of what runs once or twice."""
    return jax.jit(make, out_shardings=shardings,
                   compiler_options=compiler.options_of_one_run(self.mesh.devices.flat[0].platform))

  def encoder(self, variables: dict[str, Any]) -> FrozenEncoder:
    """The encoder with these variables, to evaluate."""
    return FrozenEncoder(self.method.network.encode, variables, self.knn_encode)


def pretrain(config: Any) -> dict[str, Any]:
  """Pretrains an encoder, evaluates it, and writes everything to the run folder.

  Running it again with the same config resumes from the last checkpoint.

  Args:
    config: the whole config; see configs/conic.py.

  Returns:
    The content of summary.json.

  Raises:
    UserError: for anything that the user can fix.
    Stopped: after Ctrl-C, SIGTERM or SIGHUP, once everything is saved.
  """
  config = expand_config(config)
  settings.check(config)
  place = run_folder(config.run, process=jax.process_index())
  with Session(place, meshes.make_mesh(config.mesh)) as session:
    session.claim_folder('config.run')
    task = prepare(config, session)
    check_resumed(task, session)
    checkpoints = session.checkpoints('checkpoints', task.keep, config.checkpoint.verify)
    state = checkpoints.restore(task.shapes, task.identity)
    fresh, first_step = state is None, 0 if state is None else int(state.step)
    reporter = open_reporter(task, session, None if fresh else first_step)
    undecodable = pipeline.UndecodableImages(task.data.train, session.folder / inventory.UNDECODABLE)
    if state is None:
      state = begin(task, checkpoints, undecodable, session, reporter)
    hosts = open_hosts(task, state, first_step, fresh, session)
    if not fresh:
      write_config(task, session)
    if checkpoints.last_step() is not None:
      session.remove('before_training')
    probe = probes.make(task.method.views[0], task.data.train, task.config, task.last_step, task.mesh)
    random_variables = task.random_variables(state if fresh and not task.start else None)
    if first_step == 0:
      report_random(task, random_variables, probe, reporter)
    phase = training_phase(task, first_step, probe, checkpoints, hosts, undecodable, reporter)
    if config.profile:
      phase = traced(phase, task, first_step, session, reporter)
    state = run_steps(phase, state, session)
    return finish(task, state, random_variables, probe, phase, session, reporter)


def prepare(config: Any, session: Session) -> Task:
  """Opens the images, settles what the config leaves open, and creates method and optimizer.

  Raises:
    UserError: if settings and images do not fit together.
  """
  mesh = session.mesh
  config, splits = settings.choose_splits(config)
  config, of_weights, start = warm_start.open_start(config)
  train = sources.open_source(config.data, config.data.train)
  if recipe.has_begun(session.place):
    train = inventory.keep_places(train, session.folder, session.log)
  test = sources.open_source(config.data, config.data.test) if config.data.test else None
  labelled = protocols.has_labels(train, test)
  config, chosen = settings.settle(config, train, labelled, mesh, session.log, splits + of_weights)
  meshes.check_batch_size(config.batch_size, mesh)
  protocols.check(train, test, config, mesh)
  if config.num_instances not in (0, train.num_images):
    raise UserError(f'config.num_instances is {config.num_instances} and the data set has {train.num_images} '
                    'images: it is for python -m conic_jax.plan; leave it 0 here.')
  sampler = Sampler(train.num_images, config.batch_size, config.seed, **config.sampler)
  total_steps = sampler.steps_per_epoch * config.epochs
  dtype = meshes.compute_dtype(config.dtype)
  method = methods.make(config, train.num_images, mesh, dtype)
  pipeline.check_views(train, method.views)
  optimizer = optim.make_optimizer(config.optimizer)
  init = functools.partial(init_state, method, optimizer, config.seed, dtype)
  shapes = jax.eval_shape(init)
  if start:
    start = warm_start.fitted(start, shapes)
    warm_start.check(start, shapes, config)
    config = warm_start.compared(config)
  return Task(
    config=config, description={**describe(config), **({'recipe': chosen} if chosen else {})},
    data=Data(train, test, sampler), method=method, optimizer=optimizer,
    schedule=optim.make_schedule(config.optimizer, config.epochs, sampler.steps_per_epoch), dtype=dtype,
    gradients=gradients.chosen(config, method, mesh), mesh=mesh, init=init,
    shapes=meshes.placed(shapes, state_shardings(shapes, method, mesh)),
    last_step=min(total_steps, config.max_steps or total_steps),
    identity=run_identity(config, sampler, dtype),
    knn_encode=method.network.embed if protocols.features_name(config) == 'head' else method.network.encode,
    start=start)


def open_reporter(task: Task, session: Session, resumed_at: int | None) -> Reporter:
  """Opens the run's reports and announces the run; `resumed_at` is None for a new run."""
  reporter = session.keep_open(Reporter(
    session.folder, first_step=resumed_at or 0, total_steps=task.last_step, active=session.first_process))
  sampler = task.data.sampler
  description = getattr(task.data.train, 'description', '')
  described = f' ({description})' if description else ''
  reporter.say(f'{task.config.method}: {sampler.num_images} images{described}, '
               f'{sampler.steps_per_epoch} steps an epoch, {task.mesh.size} '
               f'{jax.devices()[0].device_kind} device(s), {jnp.dtype(task.dtype).name}'
               + ('' if resumed_at is None else f', going on from step {resumed_at}'))
  weights = warm_start.told(task.start) if task.start and resumed_at is None else ''
  if session.first_process:
    services = {'wandb': (task.config.log.wandb, open_wandb)}
    opened = open_loggers(services, session.folder, task.description, reporter.say)
    reporter.loggers = [session.keep_open(logger) for logger in opened]
  for notice in filter(None, (weights, sampler.notice, task.method.notice)):
    reporter.say(notice)
  return reporter


def begin(task: Task, checkpoints: Checkpoints, undecodable: pipeline.UndecodableImages, session: Session,
          reporter: Reporter) -> TrainState:
  """The state that training starts with; it is saved if the method has an initial pass, which comes first."""
  write_config(task, session, fresh=True)
  if not (initial_pass := task.method.initial_pass):
    return task.begin()
  of_pass = session.checkpoints('before_training', 1, task.config.checkpoint.verify)
  phase = pass_phase(task, initial_pass, of_pass, undecodable, reporter)
  state = of_pass.restore(task.shapes, phase.identity)
  state = task.begin() if state is None else state
  reporter.say(f'A pass over every image comes first: {phase.last_step} steps'
               + (f', from step {int(state.step)}' if int(state.step) else ''))
  state = run_steps(phase, state, session)
  state = initial_pass.finish(state.replace(step=jnp.zeros_like(state.step)), task.initial_statistics())
  checkpoints.save(state, 0, task.identity)
  checkpoints.wait()
  return state


def pass_phase(task: Task, initial_pass: InitialPass, checkpoints: Checkpoints,
               undecodable: pipeline.UndecodableImages, reporter: Reporter) -> Phase:
  """The phase that shows the method every image once before training; resumes from its own checkpoints."""
  config, method, source = task.config, task.method, task.data.train
  view = (dataclasses.replace(method.views[0], count=1),)
  last_step = -(-source.num_images // config.batch_size)
  own = {name: json_value(config[name]) for name in ('prior', 'views') if name in config}

  @functools.partial(jax.jit, donate_argnums=0,
                     in_shardings=(task.shardings, meshes.batch_sharding(task.mesh)),
                     out_shardings=(task.shardings, meshes.replicated(task.mesh), None))
  def step(state, batch):
    batch = augment_batch(view, batch, config.seed, jnp.uint32(PASS_EPOCH))
    done = state.step + 1
    return initial_pass.step(state, batch).replace(step=done), {'done': done}, {}

  return Phase(
    name=' of the pass before training', step=step, last_step=last_step, batch_size=config.batch_size,
    batches=lambda first: pipeline.whole_pass_batches(
      source, view, batch_size=config.batch_size, seed=config.seed, epoch=PASS_EPOCH, start_step=first,
      rows=meshes.process_rows(task.mesh, config.batch_size)),
    undecodable=undecodable, unread=('label',), log_every=config.log_every,
    report=lambda state, done, figures: reporter.say(f'step {done}/{last_step} of the pass'),
    checkpoints=checkpoints, identity=task.identity | own, save_every=max(1, last_step // _SAVES_IN_A_PASS))


def open_hosts(task: Task, state: TrainState, first_step: int, fresh: bool, session: Session
               ) -> dict[str, HostSide]:
  """Starts the host sides of the memories that have one."""
  host_settings = HostSettings(
    folder=session.folder / 'store', batch_size=task.config.batch_size, last_step=task.last_step,
    save_every=task.save_every, batch_ids=task.data.sampler.batch_ids, keep=task.keep,
    remote=session.place.remote and session.place.remote / 'store')
  return session.open_hosts(task.method.memories, state.memories, host_settings, first_step, fresh)


def check_resumed(task: Task, session: Session) -> None:
  """Checks that a run that has begun still has its images, and says which of its settings changed.

  Raises:
    UserError: if the images are others.
  """
  def check() -> None:
    if session.first_process and recipe.has_begun(session.place):
      if unchecked := inventory.check(task.data.train, session.folder):
        session.log(unchecked)
        inventory.write(task.data.train, session.folder)
      before = read_json(session.folder / 'config.json')
      if before is None:
        session.log(f'{session.place}/config.json cannot be read, and is written anew.')
      elif changed := changes(before, task.description):
        session.log(f'Changed since this run began or last went on: {listed(changed, 12)}.')
  run_everywhere(check)


def write_config(task: Task, session: Session, fresh: bool = False) -> None:
  """Writes config.json, and what the images of a new run are.

  Raises:
    UserError: if they cannot be written.
  """
  if not session.first_process:
    return
  try:
    write_json(session.folder / 'config.json', task.description)
    if fresh:
      (session.folder / inventory.UNDECODABLE).unlink(missing_ok=True)
    if fresh or not (session.folder / inventory.FILE).exists():
      inventory.write(task.data.train, session.folder)
  except OSError as error:
    raise UserError(f'{session.place} cannot be written ({reason(error)}): free room, or give config.run '
                    'another folder.') from error


def report_random(task: Task, random_variables: Callable[[], dict[str, Any]], probe: probes.Probe,
                  reporter: Reporter) -> None:
  """Reports, at step 0, the random network's figures as a baseline."""
  initial = task.encoder(random_variables())
  reporter.report(0, 0.0, probes.baselines(probe, initial) | protocols.knn_baselines(
    initial, task.data.train, task.data.test, task.config, task.mesh))


def training_phase(task: Task, first_step: int, probe: probes.Probe, checkpoints: Checkpoints,
                   hosts: dict[str, HostSide], undecodable: pipeline.UndecodableImages,
                   reporter: Reporter) -> Phase:
  """The phase of the training itself."""
  config, method, sampler = task.config, task.method, task.data.sampler
  steps_per_epoch = sampler.steps_per_epoch

  def report(state: TrainState, done: int, figures: Figures) -> None:
    measured: dict[str, Any] = dict(figures)
    if done in probe.steps:
      measured |= probes.loss_share(method.chance, measured)
      measured |= probes.measure(probe, [task.encoder(variables(state))])[0]
      measured |= verdict.next_word(reporter.reports, done, done / steps_per_epoch, measured, config,
                                    reporter.say)
    reporter.report(done, done / steps_per_epoch, measured)

  def evaluate(state: TrainState, done: int) -> None:
    reporter.report(done, done / steps_per_epoch, protocols.online_knn(
      task.encoder(variables(state)), task.data.train, task.data.test, config, task.mesh))

  step = make_step(method, task.optimizer, task.schedule, config.seed, sampler.steps_per_round, task.dtype,
                   task.gradients)
  return Phase(
    name='', step=jit_step(step, task.shardings, task.mesh), last_step=task.last_step,
    batch_size=config.batch_size,
    batches=training_batches(task.data.train, method, sampler, task.mesh),
    undecodable=undecodable, unread=('label',), hosts=hosts, progress=reporter.advance,
    before_epoch=jit_before_epoch(method, task.shardings), steps_per_epoch=steps_per_epoch,
    report=report, log_every=config.log_every, also_report=probe.steps | {first_step + 1},
    evaluate=evaluate, evaluate_every=config.knn_every * steps_per_epoch,
    checkpoints=checkpoints, identity=task.identity, save_every=task.save_every,
    advice=f'Likely: config.optimizer.learning_rate {config.optimizer.learning_rate} is too high (try a '
           f'third), config.optimizer.warmup_epochs {config.optimizer.warmup_epochs:g} is too short, or '
           f'config.dtype {config.dtype} is too narrow (try float32).')


def traced(phase: Phase, task: Task, first_step: int, session: Session, reporter: Reporter) -> Phase:
  """The phase with a trace of the steps `config.profile`, if they are still to come."""
  first, last = task.config.profile
  trace = session.keep_open(Trace(session.folder / 'tensorboard', first, last, first_step, reporter.say))
  return dataclasses.replace(phase, step=trace.of(phase.step))


def finish(task: Task, state: TrainState, random_variables: Callable[[], dict[str, Any]], probe: probes.Probe,
           phase: Phase, session: Session, reporter: Reporter) -> dict[str, Any]:
  """Evaluates the encoder, writes summary.json and draws pictures if `config.figures`; returns the summary.

  Raises:
    UserError: if not everything could be saved.
  """
  if left_out := phase.undecodable.report():
    reporter.say(left_out)
  config, data, encoder = task.config, task.data, task.encoder(variables(state))
  summary = {'step': int(state.step), 'num_images': data.sampler.num_images}
  summary |= verdict.of_summary(reporter.reports, config)
  summary |= protocols.evaluate(encoder, random_variables, data.train, data.test, config, task.mesh,
                                say=reporter.say, probe=probe)
  checkpoints = phase.checkpoints
  failure = (checkpoints and checkpoints.failure) or reporter.failure
  if session.first_process and not failure:
    try:
      write_json(session.folder / 'summary.json', summary)
    except OSError as error:
      failure = str(error)
  if config.figures:
    protocols.draw(encoder, data.train, data.test, config, task.mesh, session.folder, say=reporter.say)
  for logger in reporter.loggers:
    logger.conclude(summary, sorted((session.folder / 'figures').glob('*.png')))
  if session.first_process and not failure:
    failure = session.unsent()
  if failure:
    last = checkpoints.last_path() if checkpoints else 'none'
    raise UserError(f'The training ended, but not all of it could be saved ({failure}): the last good '
                    f'checkpoint is {last}. {session.remedy} and run the same command again to go on '
                    'from it.')
  return summary
