"""A trace of some steps of a run, which TensorBoard and Perfetto open."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

Step = Callable[[Any, dict[str, Any]], tuple[Any, ...]]


class Trace:
  """Records what host and devices do from one step to another, by `jax.profiler`.

  It writes plugins/profile/<time>/<host>.xplane.pb, for TensorBoard's profile plugin, and
  <host>.trace.json.gz, for https://ui.perfetto.dev. A trace that cannot be made does not stop the training: a
  line says so.

  Args:
    folder: TensorBoard's folder of the run.
    first, last: the steps done when it begins and when it ends.
    done: steps done so far. A run that goes on between the two records the rest.
    say: shows a line.
  """

  def __init__(self, folder: Path, first: int, last: int, done: int, say: Callable[[str], None]):
    self._folder, self._first, self._last, self._say = folder, first, last, say
    self._done, self._recording = done, False

  def of(self, step: Step) -> Step:
    """The same step, recorded when its turn comes."""
    def traced(state: Any, inputs: dict[str, Any]) -> tuple[Any, ...]:
      if self._first <= self._done < self._last and not self._recording:
        self._begin()
      with jax.profiler.StepTraceAnnotation('train', step_num=self._done + 1):
        results = step(state, inputs)
      self._done += 1
      if self._done == self._last:
        jax.block_until_ready(results)
        self.close()
      return results
    return traced

  def close(self) -> None:
    """Writes what is recorded, if anything is."""
    if self._recording:
      self._recording = False
      try:
        jax.profiler.stop_trace()
      except (OSError, RuntimeError) as error:
        self._give_up(error)
      else:
        self._say(f'The trace up to step {self._done} is in {self._folder}: tensorboard --logdir shows it, '
                  'and https://ui.perfetto.dev opens its trace.json.gz.')

  def _begin(self):
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # It records every call, which slows the steps that are measured.
    try:
      jax.profiler.start_trace(self._folder, profiler_options=options)
      self._recording = True
    except (OSError, RuntimeError) as error:
      self._give_up(error)

  def _give_up(self, error):
    self._last = self._first
    self._say(f'There is no trace of this run ({error}); the training goes on.')
