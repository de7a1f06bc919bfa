"""Processes that agree where to stop, each a thread; tests/test_cluster.py has real ones."""
import contextlib
import queue
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from conic_jax.hardware.agreement import Agreement
from conic_jax.hardware.place import Place

COUNT, AHEAD = 3, 2


@contextlib.contextmanager
def connected(seed):
  """The agreements of a cluster, whose messages take a while."""
  pause, boxes = random.Random(seed), [queue.SimpleQueue() for _ in range(COUNT)]

  def send_from(index):
    return lambda message: [boxes[to].put((index, message)) for to in (range(COUNT) if index == 0 else [0])]

  agreements = [Agreement(Place('', 0, COUNT, index), send_from(index)) for index in range(COUNT)]

  def deliver(box, agreement):
    while (arrived := box.get()) is not None:
      time.sleep(pause.choice((0, 0.001, 0.005)))
      agreement.receive(*arrived)

  with ThreadPoolExecutor(COUNT) as threads:
    for box, agreement in zip(boxes, agreements, strict=True):
      threads.submit(deliver, box, agreement)
    yield agreements
    for box in boxes:
      box.put(None)


def take_steps(index, agreement, last_step, signals, barriers, seed):
  """Passes points up to `last_step`: where it stopped and for which signal, None if it did not.

  A process may be two steps ahead of the slowest, as where it waits for the device; `signals` maps the step
  in which this process receives a signal to it.
  """
  pause, received = random.Random(seed * COUNT + index), 0
  for step in range(1, last_step + 1):
    time.sleep(pause.choice((0, 0, 0.001, 0.004)))
    if step > AHEAD:
      barriers[step - AHEAD].wait(20)
    received = signals.get(step, received)
    if told := agreement.pass_point(received):
      return step, told
  return None


def outcomes(agreements, last_step, signals, seed=0):
  """What `take_steps` returns for each process, given the signals of each."""
  barriers = {step: threading.Barrier(COUNT) for step in range(1, last_step)}
  with ThreadPoolExecutor(COUNT) as threads:
    return list(threads.map(
      lambda index: take_steps(index, agreements[index], last_step, signals.get(index, {}), barriers,
                               seed), range(COUNT)))


@pytest.mark.parametrize('signals', [
  {0: {40: 15}}, {2: {40: 15}}, {1: {1: 2}}, {0: {40: 15}, 1: {41: 2}, 2: {40: 15}},
  {1: {40: 1}, 2: {40: 15}}])
@pytest.mark.parametrize('seed', range(5))
def test_all_stop_after_the_same_step(signals, seed):
  with connected(seed) as agreements:
    stopped = outcomes(agreements, 80, signals, seed)
    assert all(agreement.stopping for agreement in agreements)
  assert len(set(stopped)) == 1
  step, told = stopped[0]
  earliest = min(min(of_one) for of_one in signals.values())
  assert earliest <= step <= earliest + AHEAD
  assert told in {number for of_one in signals.values() for number in of_one.values()}


@pytest.mark.parametrize('seed', range(10))
def test_a_signal_in_the_last_step_keeps_nobody_waiting(seed):
  """All stop after it, or come to the end and know of the signal there."""
  with connected(seed) as agreements:
    stopped = outcomes(agreements, 30, {1: {30: 15}}, seed)
    assert agreements[1].told == 15
  assert set(stopped) in ({None}, {(30, 15)})


def test_nobody_stops_without_a_signal():
  with connected(0) as agreements:
    assert outcomes(agreements, 30, {}) == [None] * COUNT
    assert not any(agreement.told for agreement in agreements)
