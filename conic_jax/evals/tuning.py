"""Shared by evaluations that train an encoder further: checkpoints, reports, and their own run folder."""
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from conic_jax.evals.encoders import Encoder
from conic_jax.hardware import mesh as meshes
from conic_jax.run.checkpoints import Checkpoints
from conic_jax.run.json_file import write_json
from conic_jax.run.loop import Figures, Phase, run_steps
from conic_jax.run.reporter import Reporter
from conic_jax.run.session import Session
from conic_jax.run.state import TrainState

_REMEDY = 'Set config.result to another name, or go back to the settings in its config.json.'


@dataclasses.dataclass(frozen=True)
class Saved:
  """The checkpoints of a training, the settings that a resumed run must match, and its config.json."""
  checkpoints: Checkpoints
  identity: Mapping[str, Any]
  description: Mapping[str, Any]


def open_saved(encoder: Encoder, config: Any, session: Session) -> Saved:
  """Opens checkpoints in the session's folder, making it a run that `open_encoder` and `export` can read.

  Args:
    encoder: the encoder to train further.
    config: config of the evaluation.
    session: its folder is the run's.
  """
  session.claim_folder('config.result')
  identity = {'config.encoder': encoder.name, 'the encoder\'s weights': digest(encoder.variables),
              'config.seed': config.seed, 'config.data.name': config.data.name,
              'config.data.train': config.data.train}
  return Saved(session.checkpoints('checkpoints', keep=2), identity, description(encoder, config))


def digest(variables: Any) -> str:
  """A short hash of all arrays in a tree."""
  found = hashlib.sha256()
  for leaf in jax.tree.leaves(variables):
    found.update(np.ascontiguousarray(leaf).tobytes())
  return found.hexdigest()[:16]


def as_json(settings: Any) -> dict[str, Any]:
  """The fields of a dataclass as JSON values."""
  return json.loads(json.dumps(dataclasses.asdict(settings)))


def description(encoder: Encoder, config: Any) -> dict[str, Any]:
  """Contents of config.json for a run that trains an encoder further."""
  pretraining = {} if encoder.pretraining is None else encoder.pretraining.to_dict()
  return {**pretraining, **config.to_dict(), 'method': config.task, 'started_from': encoder.name,
          'views': {**pretraining.get('views', {}), **dataclasses.asdict(encoder.views)},
          'encoder': dict(encoder.settings)}


def train(phase: Phase, begin: Callable[[], TrainState], session: Session, saved: Saved | None) -> TrainState:
  """Runs a phase, resuming from its last checkpoint, and reports the images left out.

  Args:
    phase: the phase, without checkpoints; its identity holds the training settings.
    begin: makes the initial state.
    session: session of the run.
    saved: where to save the state; None to save nothing.
  """
  everywhere = meshes.replicated(session.mesh)
  state = None
  if saved is not None:
    phase = dataclasses.replace(phase, checkpoints=saved.checkpoints,
                                identity={**saved.identity, **phase.identity})
    shapes = jax.eval_shape(begin)
    placed = meshes.placed(shapes, jax.tree.map(lambda _: everywhere, shapes))
    state = saved.checkpoints.restore(placed, phase.identity, _REMEDY)
    if session.first_process:
      write_json(session.folder / 'config.json', saved.description)
    phase = _reporting(phase, 0 if state is None else int(state.step), session)
  if state is None:
    state = jax.device_put(begin(), everywhere)
  else:
    session.log(f'Going on from step {int(state.step)}{phase.name}')
  state = run_steps(phase, state, session)
  if left_out := phase.undecodable.report():
    session.log(left_out)
  if saved is not None and saved.checkpoints.failure:
    session.log(f'The network could not be saved ({saved.checkpoints.failure}): free room on the disk and '
                'run the same command again to keep it.')
  return state


def _reporting(phase: Phase, first_step: int, session: Session) -> Phase:
  """The phase, also reporting to the run's metrics.jsonl and TensorBoard."""
  reporter = session.keep_open(Reporter(session.folder, first_step=first_step, total_steps=phase.last_step,
                                        active=session.first_process))

  def report(state: TrainState, done: int, figures: Figures) -> None:
    phase.report(state, done, figures)
    reporter.record(done, done / phase.steps_per_epoch, figures)

  return dataclasses.replace(phase, report=report, progress=reporter.advance)
