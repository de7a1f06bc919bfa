"""Runs that an older version began go on: saved/METHOD.zip has the run's folder and how it ended.

`python tests/test_saved_runs.py` begins, saves and ends the runs that are not there yet, with today's code.
"""
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from support import losses_by_step, tiny, tiny_method, write_images

from conic_jax.pretraining import training

SAVED = Path(__file__).with_name('saved')
# One of each kind of state: a window and its store, a table, queues, a momentum encoder, a bank.
METHODS = ('conic_s', 'one_million', 'inscon', 'byol', 'instdisc')
STEPS_SAVED = 4


def config_of(config, name):
  """The config of a saved run: three steps an epoch, two epochs, of which it stopped in the second."""
  tiny_method(config, name)
  if name == 'conic_s':
    config.classifier.store = 'disk'
  config.eval.linear, config.checkpoint.keep = False, 1
  return config


def outcome(config):
  """What a run that ended must agree with."""
  summary = json.loads((Path(config.run) / 'summary.json').read_text())
  return {'losses': {str(step): loss for step, loss in losses_by_step(config.run).items()},
          'knn': {name: value for name, value in summary.items() if name.startswith('knn')}}


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_a_run_of_before_goes_on_and_ends_alike(tiny_config, name, tmp_path):
  config = config_of(tiny_config, name)
  shutil.unpack_archive(SAVED / f'{name}.zip', tmp_path / 'saved')
  (tmp_path / 'saved' / 'run').rename(config.run)
  training.pretrain(config)
  ended, expected = outcome(config), json.loads((tmp_path / 'saved' / 'outcome.json').read_text())
  assert ended['losses'].keys() == expected['losses'].keys()
  assert str(STEPS_SAVED + 1) in ended['losses']
  for step, loss in expected['losses'].items():
    np.testing.assert_allclose(ended['losses'][step], loss, rtol=1e-4)
  assert ended['knn'] == pytest.approx(expected['knn'], abs=0.07)  # An image of sixteen.


def make(name):
  """Writes saved/NAME.zip."""
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    write_images(root / 'images')
    config = config_of(tiny(root / 'images', root / 'run'), name)
    config.max_steps = STEPS_SAVED
    training.pretrain(config)
    shutil.rmtree(root / 'run' / 'tensorboard')
    shutil.copytree(root / 'run', root / 'saved' / 'run')
    config.max_steps = 0
    training.pretrain(config)
    (root / 'saved' / 'outcome.json').write_text(json.dumps(outcome(config), indent=2) + '\n')
    SAVED.mkdir(exist_ok=True)
    shutil.make_archive(str(SAVED / name), 'zip', root / 'saved')


if __name__ == '__main__':
  for method in METHODS:
    if not (SAVED / f'{method}.zip').exists():
      make(method)
