"""The one loop over batches: pretraining, its initial pass and every evaluation that trains."""
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from conic_jax.data.pipeline import UndecodableImages
from conic_jax.errors import Stopped, UserError
from conic_jax.hardware.mesh import to_global
from conic_jax.hardware.processes import run_everywhere
from conic_jax.hardware.watchdog import stepping
from conic_jax.memories.host import HostSide, NotCopied
from conic_jax.run.checkpoints import Checkpoints
from conic_jax.run.session import Session

Figures = dict[str, float]
# Steps that may be pending on the device while the host prepares the next.
_STEPS_AHEAD = 2
# Metrics that must be finite.
_WATCHED = ('loss', 'grad_norm')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
  """A range of steps, from a given state to the one after the last step.

  Attributes:
    name: suffix of step numbers in messages, such as ' of the pass'.
    step: maps the state and a batch on the mesh to (state, metrics, outputs by host side), compiled.
    batches: maps the first step to a generator of this process's rows of its batch and all later ones.
    last_step: steps done at the end of the phase.
    batch_size: images in a batch.
    undecodable: undecodable images of the source of the batches.
    report: called with the state, the steps done and the latest metrics, at each report.
    log_every: steps between two reports; the last step is reported too.
    also_report: other steps to report.
    unread: names in a batch that the step does not read.
    before_epoch: maps the state before an epoch to the one it starts with; None to leave it unchanged.
    steps_per_epoch: steps in an epoch.
    hosts: the host sides, by the names of their memories.
    evaluate: called with the state and the steps done, every `evaluate_every` steps; 0 for never.
    checkpoints: where the state is saved, every `save_every` steps and at the end; None to save nothing.
    identity: what a resumed run must match.
    advice: what to do if the loss is not finite.
    progress: called after each step with the steps done.
  """
  name: str
  step: Callable[[Any, dict[str, Any]], tuple[Any, dict[str, jax.Array], dict[str, Any]]]
  batches: Callable[[int], Generator[dict[str, Any], None, None]]
  last_step: int
  batch_size: int
  undecodable: UndecodableImages
  report: Callable[[Any, int, Figures], None]
  log_every: int
  also_report: frozenset[int] = frozenset()
  unread: tuple[str, ...] = ()
  before_epoch: Callable[[Any], Any] | None = None
  steps_per_epoch: int = 1
  hosts: Mapping[str, HostSide] = dataclasses.field(default_factory=dict)
  evaluate: Callable[[Any, int], None] | None = None
  evaluate_every: int = 0
  checkpoints: Checkpoints | None = None
  identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  save_every: int = 0
  advice: str = ''
  progress: Callable[[int], None] = lambda done: None


def run_steps(phase: Phase, state: Any, session: Session) -> Any:
  """Takes the remaining steps of a phase.

  Args:
    phase: the phase.
    state: has `step`, the steps done; its buffers are donated.
    session: the run's session.

  Returns:
    The state after the last step; all checkpoints are written.

  Raises:
    UserError: if a loss or parameter is not finite, too many images are undecodable, or a host side fails.
    Stopped: after Ctrl-C, SIGTERM or SIGHUP, once everything is saved.
  """
  first = int(state.step)
  clock, pending = Clock(first, phase.batch_size), Pending(phase)
  with (contextlib.closing(phase.batches(first)) as batches, session.signals.deferred(),
        stepping() as watchdog):
    for step in range(first, phase.last_step):
      if phase.before_epoch and step % phase.steps_per_epoch == 0:
        state = phase.before_epoch(state)
      if step > first:  # The first one compiles.
        watchdog.feed()
      with clock.waiting():
        batch = next(batches)
      phase.undecodable.add(batch)
      read = {name: part for name, part in batch.items() if name not in phase.unread}
      inputs = to_global(read, session.mesh)
      if phase.hosts:
        inputs['host_inputs'] = {name: host.inputs(step) for name, host in phase.hosts.items()}
      state, metrics, host_outputs = phase.step(state, inputs)
      for name, host in phase.hosts.items():
        host.receive(step, host_outputs[name])
      done = step + 1
      pending.add(done, metrics)
      phase.progress(done)

      reporting = done % phase.log_every == 0 or done == phase.last_step or done in phase.also_report
      evaluating = phase.evaluate_every and done % phase.evaluate_every == 0
      saving = phase.save_every and (done % phase.save_every == 0 or done == phase.last_step)
      stopping = session.signals.agreed()
      due = reporting or saving or stopping
      figures = pending.checked() if due else {}
      watchdog.pause()
      if due:
        phase.undecodable.check()
        if reporting:
          phase.report(state, done, figures | clock.figures(done))
      if evaluating and phase.evaluate:
        phase.evaluate(state, done)
      if reporting or evaluating:
        session.send()
      if saving or stopping:
        save(phase, state, done)
      if stopping:
        raise Stopped(stopping, f'stopped at step {done}{phase.name}; {outcome(phase)}')
      if reporting or evaluating:
        clock.restart(done)
    if phase.checkpoints:
      phase.checkpoints.wait()
  return state


def save(phase: Phase, state: Any, done: int) -> None:
  """Starts saving a state after checking that its numbers are finite, with the host stores synced to it."""
  if (checkpoints := phase.checkpoints) is None:
    return
  if not all_finite((state.params, state.batch_stats, state.memories)):
    raise_non_finite('largest parameter', math.inf, done, phase)
  checkpoints.wait()
  try:
    for host in phase.hosts.values():
      run_everywhere(lambda host=host: host.sync(done, checkpoints.steps()))
  except NotCopied as error:  # On every process.
    checkpoints.leave_out(str(error))
    return
  checkpoints.save(state, done, phase.identity)


def outcome(phase: Phase) -> str:
  """Outcome of the last save, once it has finished."""
  if phase.checkpoints is None:
    return 'nothing of it is saved'
  phase.checkpoints.wait()
  return phase.checkpoints.outcome()


class Pending:
  """Metrics of the steps since the last check; some may still be pending on the device."""

  def __init__(self, phase: Phase):
    self._phase = phase
    self._metrics: list[tuple[int, dict[str, jax.Array]]] = []

  def add(self, done: int, metrics: dict[str, jax.Array]) -> None:
    """Records a step; waits if more than `_STEPS_AHEAD` are pending."""
    self._metrics.append((done, metrics))
    if len(self._metrics) > _STEPS_AHEAD:
      jax.block_until_ready(self._metrics[-1 - _STEPS_AHEAD][1])

  def checked(self) -> Figures:
    """Metrics of the latest step; checks that no pending loss is NaN or infinite.

    Raises:
      UserError: naming the step, the last good checkpoint and what to do. A float16 overflow is excused as
        long as the loss scale can still fall.
    """
    fetched, self._metrics = jax.device_get(self._metrics), []
    for done, metrics in fetched:
      excused = metrics.get('overflow', False) and metrics['loss_scale'] > 1
      for name in (() if excused else _WATCHED):
        if not math.isfinite(metrics.get(name, 0.0)):
          if self._phase.checkpoints:  # Saved after a finite loss, but its state led to this one.
            self._phase.checkpoints.discard(done - 1)
          raise_non_finite(name, metrics[name], done, self._phase)
    return {name: float(value) for name, value in fetched[-1][1].items() if name != 'overflow'}


class Clock:
  """Speed of the steps between two reports."""

  def __init__(self, first: int, batch_size: int):
    self._first, self._batch_size = first, batch_size
    self.restart(first)

  def restart(self, done: int) -> None:
    """Starts a new interval."""
    self._start, self._done, self._waited = time.perf_counter(), done, 0.0

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the duration of a block as waiting for images."""
    start = time.perf_counter()
    yield
    self._waited += time.perf_counter() - start

  def figures(self, done: int) -> Figures:
    """Images per second and the share of time spent waiting; {} after the first step, which compiles."""
    if done <= self._first + 1:
      return {}
    seconds = time.perf_counter() - self._start
    return {'images_per_second': (done - self._done) * self._batch_size / seconds,
            'waiting_for_data': self._waited / seconds}


@jax.jit
def all_finite(tree: Any) -> jax.Array:
  """Whether no float in a tree is NaN or infinite: bool []."""
  floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))


def raise_non_finite(name: str, value: float, done: int, phase: Phase) -> NoReturn:
  """Raises a `UserError`: what was not finite, where the run can resume, and what to change."""
  last = phase.checkpoints.last_path() if phase.checkpoints else 'none'
  raise UserError(f'The {name} was {value} at step {done}{phase.name}; the last good checkpoint is {last}, '
                  f'where the same command goes on. {phase.advice}')
