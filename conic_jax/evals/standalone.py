"""Standalone evaluation: any protocol on an encoder from a run, from a file, or randomly initialised."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from conic_jax import fields
from conic_jax.buckets.run_folder import RunFolder, run_folder
from conic_jax.errors import UserError
from conic_jax.evals import encoders, finetune, protocols, segment
from conic_jax.evals.encoders import Encoder
from conic_jax.evals.features import FrozenEncoder
from conic_jax.extensions import own_part
from conic_jax.hardware import mesh as meshes
from conic_jax.home import expand_config
from conic_jax.run.json_file import write_json
from conic_jax.run.session import Session
from conic_jax.visualise import attempt

# Settings of older runs, whose configs lack these fields.
_BEFORE = {'linear': {'momentum': 0.9, 'schedule': 'cosine', 'milestones': (), 'normalise': 'none',
                      'crop': (0.08, 1.0)}}

# What a run's folder holds; a result of such a name would take its place.
_OF_RUNS = frozenset(('before_training', 'checkpoints', 'checksums', 'config', 'conic_jax', 'damaged',
                      'figures', 'images', 'loggers', 'metrics', 'report', 'store', 'summary', 'tensorboard'))

Task = Callable[[Encoder, Any, Session], protocols.Outcome]


def evaluate(config: Any) -> dict[str, Any]:
  """Evaluates `config.encoder` by the protocol `config.task`; prints and writes the figures and pictures.

  They are written to `config.result` + '.json' and figures/ in `config.run`; by default in the encoder's own
  run or, for an encoder without a run, in runs/evaluated_NAME. A picture that cannot be drawn is told in a
  line.

  Returns:
    The figures.

  Raises:
    UserError: if there is no such task or encoder, the data is unsuitable, or the result cannot be written.
  """
  config = expand_config(config)
  fields.check(config)
  task = task_of(config.task)
  if not config.encoder:
    raise UserError('Which encoder? --config.encoder=RUN, the folder of a pretraining run, or a file of '
                    'weights, or --config.encoder=random.')
  encoder = encoders.open_encoder(config.encoder, config.network, config.dtype, config.seed)
  config = complete(config, encoder)
  run = run_folder(config.run or own_folder(encoder), process=jax.process_index())
  if not config.result or config.result[0] == '.' or '/' in config.result or config.result in _OF_RUNS:
    raise UserError(f"config.result is '{config.result}': give a name without folders that is not one of a "
                    f"run's own ({', '.join(sorted(_OF_RUNS))}).")
  with Session(run / config.result, meshes.make_mesh(config.mesh)) as session:
    if session.first_process:
      _write(lambda: run.local.mkdir(parents=True, exist_ok=True), run)
    outcome = task(encoder, config, session)
    session.log('\n'.join(f'{name:24}{value}' for name, value in outcome.figures.items()))
    if session.first_process:
      written = run / f'{config.result}.json'
      _write(lambda: write_json(written.local, outcome.figures), written)
      written.send()
      session.log(f'Written to {written}')
      for name, draw in outcome.pictures.items():
        picture = run / 'figures' / f'{config.result}_{name}.png'
        if attempt(draw, picture.local, session.log):
          picture.send()
          session.log(f'Picture: {picture}')
  return outcome.figures


def own_folder(encoder: Encoder) -> str:
  """Default folder for an encoder's results."""
  return encoder.name if encoder.pretraining is not None else f'runs/evaluated_{Path(encoder.name).stem}'


def complete(config: Any, encoder: Encoder) -> Any:
  """Fills open fields of the config from the encoder's own run.

  Raises:
    UserError: if a field stays open.
  """
  config, pretraining = config.copy_and_resolve_references(), encoder.pretraining
  if pretraining is not None:
    if not config.data.name:
      for name in config.data:
        config.data[name] = config.data[name] or pretraining.data.get(name, '')
    if 'views' in config:
      config.views = ConfigDict({**pretraining.views, 'size': config.views.size or pretraining.views.size})
    for part in ('eval', 'linear'):
      if part in config and part in pretraining:
        given = {name: value for name, value in config[part].items() if value is not None}
        theirs = {name: value for name, value in (_BEFORE.get(part, {}) | pretraining[part].to_dict()).items()
                  if name in config[part]}
        config[part] = ConfigDict({**theirs, **given})
  still_open = [f'config.{path}' for path, value in fields.leaves(config) if value is None]
  still_open += [] if config.data.name else ['config.data.name']
  if still_open:
    raise UserError(f'The encoder {encoder.name} has no run to take data and settings from, or it lacks '
                    f'them: give a preset of configs/{config.task}.py that names them, or set '
                    f'{", ".join(still_open)}.')
  return config


def _write(action: Callable[[], None], path: RunFolder) -> None:
  try:
    action()
  except OSError as error:
    raise UserError(f'{path} cannot be written ({error}): make room, or set config.run.') from error


def _frozen(encoder: Encoder, mesh: Mesh) -> FrozenEncoder:
  return FrozenEncoder(encoder.encode, jax.device_put(encoder.variables, meshes.replicated(mesh)))


def _knn(encoder: Encoder, config: Any, session: Session) -> protocols.Outcome:
  mesh = session.mesh
  train_source, test_source = protocols.labelled_sources(config, mesh)
  if protocols.features_name(config) == 'head':
    encoder = encoders.with_head(encoder)
  return protocols.Outcome(protocols.knn(_frozen(encoder, mesh), train_source, test_source, config, mesh))


def _linear(encoder: Encoder, config: Any, session: Session) -> protocols.Outcome:
  mesh = session.mesh
  train_source, test_source = protocols.labelled_sources(config, mesh)
  return protocols.linear(_frozen(encoder, mesh), train_source, test_source, config, mesh, session.log)


def _svm(encoder: Encoder, config: Any, session: Session) -> protocols.Outcome:
  from conic_jax.evals import svm  # scikit-learn takes seconds, and every evaluation imports this file.
  return svm.run(encoder, config, session)


TASKS: dict[str, Task] = {'knn': _knn, 'linear': _linear, 'finetune': finetune.run, 'svm': _svm,
                          'segment': segment.run}


def task_of(name: str) -> Task:
  """The evaluation with this name: one of `TASKS`, or the `run` of a module such as 'mine.retrieval'."""
  if run := own_part(name, 'run'):
    return run
  if name not in TASKS:
    raise UserError(f"config.task is '{name}'; available: pretrain, {', '.join(TASKS)}, or a module of "
                    'yours.')
  return TASKS[name]
