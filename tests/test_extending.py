"""The guide's examples, taken from its page and run: each is one file more, and no file of ours changes."""
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from checkout import COMPILED, ROOT, copy_checkout

from conic_jax.command_line import load
from conic_jax.errors import UserError
from conic_jax.evals import standalone
from conic_jax.extensions import own_module
from conic_jax.pretraining import training

PAGE = (ROOT / 'docs' / 'extending.md').read_text()
FILES = dict(re.findall(r'```python\n# (\S+)\n(.*?)```', PAGE, flags=re.DOTALL))


def write_files(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FILES[name])


def python(folder, *arguments):
  """Runs Python in a copy of the checkout: (exit code, all it says)."""
  environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': str(COMPILED), 'PYTHONPATH': str(folder)}
  done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True,
                        text=True)
  return done.returncode, done.stdout + done.stderr


@pytest.fixture
def mine(tmp_path, monkeypatch):
  """A folder of one's own modules, where the command is started."""
  monkeypatch.syspath_prepend(str(tmp_path))
  yield tmp_path
  for name in [name for name in sys.modules if name.split('.')[0] == 'mine']:
    del sys.modules[name]


@pytest.mark.slow
def test_a_method_is_a_file_and_a_config_and_every_walking_test_takes_it(tmp_path):
  copy_checkout(tmp_path)
  write_files(tmp_path, 'conic_jax/methods/vicreg.py', 'configs/vicreg.py')
  code, said = python(tmp_path, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-k', 'vicreg',
                      'tests/methods/test_all.py', 'tests/test_configs.py')
  assert code == 0, said
  assert int(re.search(r'(\d+) passed', said)[1]) >= 5


@pytest.mark.slow
def test_a_margin_is_right_in_all_four_places(tmp_path):
  copy_checkout(tmp_path)
  write_files(tmp_path, 'mine/check_margin.py')
  file = tmp_path / 'conic_jax' / 'losses' / 'partitioned.py'
  diff = re.search(r'```diff\n(.*?)```', PAGE, flags=re.DOTALL)[1]
  for hunk in diff.split('@@ ')[1:]:
    if not (lines := [line for line in hunk.splitlines()[1:] if line]):
      continue
    before = '\n'.join(line[1:] for line in lines if not line.startswith('+'))
    after = '\n'.join(line[1:] for line in lines if not line.startswith('-'))
    assert file.read_text().count(before) == 1, before
    file.write_text(file.read_text().replace(before, after))
  code, said = python(tmp_path, 'mine/check_margin.py')
  assert (code, said.strip().splitlines()[-1:]) == (0, ['the margin is right']), said


@pytest.mark.slow
def test_a_source_an_encoder_and_an_evaluation_are_a_file_each(tiny_config, mine):
  write_files(mine, 'mine/stripes.py', 'mine/plain.py', 'mine/retrieval.py')
  tiny_config.data.name = 'mine.stripes'
  tiny_config.encoder.name, tiny_config.encoder.width = 'mine.plain', 0.5
  tiny_config.knn_every, tiny_config.figures = 1, True
  summary = training.pretrain(tiny_config)
  assert summary['num_images'] == 64
  assert 'linear_top1' in summary

  config = load('configs/knn.py')
  config.task, config.result, config.encoder = 'mine.retrieval', 'retrieval', tiny_config.run
  figures = standalone.evaluate(config)
  assert 0 <= figures['retrieval'] <= 1
  assert (Path(tiny_config.run) / 'retrieval.json').is_file()


def test_a_memory_leaves_its_state_where_a_step_is_skipped(mine):
  write_files(mine, 'mine/feature_mean.py')
  memory = own_module('mine.feature_mean').FeatureMean(3)
  update = lambda applied: memory.update(memory.init(), jnp.ones((4, 3)), {}, 0, 0.0, applied)
  assert update(True).tolist() == pytest.approx([0.1] * 3)
  assert update(False).tolist() == [0, 0, 0]


def test_a_module_that_is_not_there_is_told(mine):
  write_files(mine, 'mine/stripes.py')
  (mine / 'mine' / 'broken.py').write_text('import no_such_package\n')
  assert own_module('photos') is None
  assert own_module('imagenet2012:5.1.0') is None
  with pytest.raises(UserError, match=r"There is no module 'mine\.nothing'"):
    own_module('mine.nothing')
  with pytest.raises(ModuleNotFoundError, match='no_such_package'):
    own_module('mine.broken')
