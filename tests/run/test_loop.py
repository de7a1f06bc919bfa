"""The loop's steps, without a network."""
import dataclasses
import time

import jax.numpy as jnp
import numpy as np
import pytest

from conic_jax.hardware.watchdog import watched
from conic_jax.run.loop import Phase, run_steps

HUNG_AFTER = 0.4


class NoImages:
  """No undecodable images."""

  def add(self, batch):
    """Adds those of a batch."""

  def check(self):
    """Checks their share."""


@dataclasses.dataclass(frozen=True)
class State:
  """The steps done."""
  step: int = 0


@pytest.mark.slow
@pytest.mark.parametrize(('slow', 'hung'), [
  ('first step', []), ('step', [HUNG_AFTER]), ('batch', [HUNG_AFTER]), ('report', []), ('evaluate', []),
  ('before_epoch', [])])
def test_only_what_a_step_waits_for_hangs(slow, hung, open_session, mesh8):
  def take(part):
    if part == slow:
      time.sleep(3 * HUNG_AFTER)

  def step(state, batch):
    take('step' if state.step == 2 else 'first step' if state.step == 0 else '')
    return State(state.step + 1), {'loss': jnp.zeros(())}, {}

  def batches(first):
    for number in range(first, 4):
      take('batch' if number == 2 else '')
      yield {'id': np.zeros(8, np.int32)}

  def before_epoch(state):
    take('before_epoch')
    return state

  told = []
  with watched(HUNG_AFTER, told.append):
    run_steps(Phase(
      name='', step=step, batches=batches, last_step=4, batch_size=8, undecodable=NoImages(), log_every=2,
      report=lambda *_: take('report'), before_epoch=before_epoch, steps_per_epoch=2,
      evaluate=lambda *_: take('evaluate'), evaluate_every=2), State(), open_session(mesh8))
  assert told == hung
