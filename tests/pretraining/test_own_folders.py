"""A cluster whose processes share no disk for the rows: one is killed and its disk is lost."""
import contextlib
import shutil
from pathlib import Path

import pytest
from support import flags_of, losses_by_step, reserved_port, tiny_method
from test_cluster import ended, finish, start, wait_for
from xla_flags import xla_flags

SCRIPT = Path(__file__).with_name('own_folder_process.py')
STEPS = 30


@contextlib.contextmanager
def pair(config, folder):
  """Two processes of the command, each with its folder below this one."""
  flags = [*flags_of(config), '--num_processes=2', '--lost_after=20']
  with reserved_port() as port, ended([
      start(['-W', 'ignore', SCRIPT, folder / f'disk-{index}', folder / 'bucket', *flags,
             f'--coordinator=localhost:{port}', f'--process_id={index}'], XLA_FLAGS=xla_flags(1))
      for index in (0, 1)
  ]) as processes:
    yield processes


def pretrain(config, folder):
  """Goes on to the last step."""
  config.max_steps = STEPS
  with pair(config, folder) as processes:
    for process in processes:
      code, _, err = finish(process, 240)
      assert code == 0, err


@pytest.mark.slow
def test_a_lost_disk_costs_the_steps_since_the_last_checkpoint(tiny_config, tmp_path):
  """The losses are those of an undisturbed run, to the bit; they are the same with either store."""
  tiny_method(tiny_config, 'conic_s', **{'eval.knn': False, 'eval.linear': False, 'epochs': 1000})
  tiny_config.run, tiny_config.classifier.store = str(tmp_path / 'undisturbed'), 'disk'
  pretrain(tiny_config, tmp_path)
  expected = losses_by_step(tiny_config.run)
  assert len(expected) == STEPS
  for lost, store in enumerate(('host', 'disk')):
    tiny_config.run, tiny_config.classifier.store = str(tmp_path / store), store
    tiny_config.max_steps = 0
    with pair(tiny_config, tmp_path / f'of {store}') as processes:
      saved = Path(tiny_config.run) / 'checkpoints'
      wait_for(processes, lambda saved=saved: any(path.name.isdigit() for path in saved.glob('*')), 240)
      processes[1].kill()
      finish(processes[0])
    shutil.rmtree(tmp_path / f'of {store}' / f'disk-{lost}')
    pretrain(tiny_config, tmp_path / f'of {store}')
    assert losses_by_step(tiny_config.run) == expected
