"""A run on two processes that loses one after another, in every way, and ends as if it had not.

Each test starts the same run again, waits for its next checkpoint, and disturbs it; the last one compares.
"""
import re
import signal
from pathlib import Path

import pytest
from clusters import assert_one_sentence, finish, pretraining, running
from namespaces import ADDRESSES, two_machines
from support import losses_by_step, tiny

from conic_jax.hardware.watch import LOST
from conic_jax.run.whole import steps_in

pytestmark = pytest.mark.slow

# Long enough for a busy machine, short enough for a test.
LOST_AFTER = '--lost_after=8'


def config_of(images, folder):
  """A run that is long enough to be disturbed: 48 steps, saved eight times."""
  config = tiny(images, folder)
  config.epochs, config.checkpoint.every_epochs = 16, 2.0
  config.eval.knn = config.eval.linear = False
  return config


@pytest.fixture(scope='module')
def config(image_folder, tmp_path_factory):
  """The run that is disturbed."""
  return config_of(image_folder, tmp_path_factory.mktemp('disturbed') / 'run')


def lost(config, which, how):
  """What a process says of another that is lost."""
  return (rf'^conic_jax: Process {which} of 2 on \S+ {how}.* \(since \d\d:\d\d:\d\d\)\. The last good '
          rf'checkpoint is {config.run}/checkpoints/\d+\. Start all processes again with the same command to '
          r'go on\.$')


def test_a_process_is_killed(config):
  with pretraining(config) as processes:
    processes[1].kill()
    code, out, err = finish(processes[0])
  assert code == LOST, err
  assert re.fullmatch(lost(config, 1, 'is gone'), err.strip()), err
  assert '[Gloo]' not in out


def test_a_process_freezes(config):
  with pretraining(config, LOST_AFTER) as processes:
    processes[0].send_signal(signal.SIGSTOP)
    assert_one_sentence(processes[1], LOST, lost(config, 0, r'has been silent for \d+ s'), None)


def test_the_network_is_lost(config, tmp_path):
  """Neither process hears of it: each loses the other."""
  with (two_machines(tmp_path) as machines,
        pretraining(config, LOST_AFTER, host=ADDRESSES[0], before=machines.enter) as processes):
    machines.pull_the_cable()
    for index, process in enumerate(processes):
      assert_one_sentence(process, LOST, lost(config, 1 - index, r'has been silent for \d+ s'), None)


def test_one_host_is_given_notice(config):
  """All save at the same step, however far the next report is."""
  often, config.log_every = config.log_every, 100_000
  with pretraining(config) as processes:
    processes[1].send_signal(signal.SIGTERM)
    said = [finish(process, 30) for process in processes]
  config.log_every = often
  assert [code for code, _, _ in said] == [128 + signal.SIGTERM] * 2, said
  assert said[0][2] == said[1][2]
  assert re.fullmatch(rf'conic_jax: SIGTERM: stopped at step (\d+); saved {config.run}/checkpoints/\1\. Run '
                      r'the same command again to go on\.\n', said[0][2]), said


def test_in_the_end_nothing_has_happened(config, image_folder, tmp_path):
  """Losses are equal to the bit, but for reports that were left out above."""
  undisturbed = config_of(image_folder, tmp_path / 'run')
  undisturbed.checkpoint.every_epochs = 16.0
  before = max(steps_in(Path(config.run, 'checkpoints')), default=0)
  for each in (config, undisturbed):
    with running(each) as processes:
      for process in processes:
        code, _, err = finish(process, 300)
        assert code == 0, err
  found, expected = losses_by_step(config.run), losses_by_step(undisturbed.run)
  assert before < 48
  assert set(range(before + 1, 49)) <= set(found)
  assert found == {step: expected[step] for step in found}
