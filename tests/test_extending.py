"""The guide's examples, taken from its page and run: each is one file more, and no file of ours changes."""
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from checkout import COMPILED, ROOT, copy_checkout
from flax import traverse_util
from support import flags_of, tiny_method

from conic_jax import activations, main, methods
from conic_jax.command_line import load
from conic_jax.errors import UserError
from conic_jax.evals import segment, standalone
from conic_jax.evals.encoders import Encoder, open_encoder
from conic_jax.export import card, targets
from conic_jax.extensions import own_module
from conic_jax.pretraining import training
from conic_jax.report.read_run import read_run
from conic_jax.views import evaluated

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
def test_a_source_an_encoder_and_an_evaluation_are_a_file_each(tiny_config, mine, mesh8):
  write_files(mine, 'mine/stripes.py', 'mine/plain.py', 'mine/retrieval.py')
  tiny_config.data.name = 'mine.stripes'
  tiny_config.encoder.name, tiny_config.encoder.width = 'mine.plain', 0.5
  tiny_config.epochs, tiny_config.knn_every = 1, 1
  summary = training.pretrain(tiny_config)
  assert summary['num_images'] == 64
  assert 'linear_top1' in summary

  config = load('configs/knn.py')
  config.task, config.result, config.encoder = 'mine.retrieval', 'retrieval', tiny_config.run
  figures = standalone.evaluate(config)
  assert 0 <= figures['retrieval'] <= 1
  assert (Path(tiny_config.run) / 'retrieval.json').is_file()

  shown = read_run(Path(tiny_config.run))
  assert (shown.facts['encoder'], shown.targets) == ('mine.plain, Plain, 32 features', ['flax'])
  settings = segment.Segmentation(**load('configs/segment.py').segmentation)
  with pytest.raises(UserError, match=r'Plain has no field output_stride'):
    segment.build(open_encoder(tiny_config.run), settings, 0, mesh8)


@pytest.fixture
def plain(mine):
  """(module, variables, two images) of the page's encoder."""
  write_files(mine, 'mine/plain.py', 'mine/arrays.py')
  network = own_module('mine.plain').Plain(4, 1, jnp.float32)
  images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.float32)
  return network, jax.device_get(jax.jit(network.init)(jax.random.key(0), images)), images


@pytest.mark.parametrize(('target', 'ending', 'read'), [
  ('flax', 'safetensors', safetensors.numpy.load_file), ('mine.arrays', 'npz', np.load)])
def test_any_encoder_is_exported_by_its_own_names(plain, tmp_path, target, ending, read):
  network, variables, images = plain
  targets.check(target, network)
  out = tmp_path / f'out.{ending}'
  origin = card.Origin('made up', {})
  targets.write(target, network, variables, card.text(target, network, origin, out), out)
  restored = traverse_util.unflatten_dict(dict(read(out)), sep='/')
  np.testing.assert_array_equal(network.apply(restored, images), network.apply(variables, images))
  text = targets.card_path(target, out).read_text()
  assert f"'out.{ending}'" in text
  assert '| encoder | Plain, without a head |\n| output | 16 features |' in text


def test_targets_of_resnets_refuse_another_encoder(plain):
  for target in set(targets.TARGETS) - {'flax'}:
    with pytest.raises(UserError, match=f'{target} cannot .*: it is a Plain, .*--to=flax any encoder'):
      targets.check(target, plain[0])


def test_maps_of_any_encoder_are_drawn(plain):
  network, variables, images = plain
  encoder = Encoder('plain', network, variables, evaluated({}), network.apply, None)
  maps = activations.activation_maps(encoder, images.astype(np.uint8))
  np.testing.assert_allclose(maps.max((1, 2)), 1)


@pytest.mark.slow
def test_inscon_takes_any_encoder_with_maps(tiny_config, mesh8, mine):
  write_files(mine, 'mine/plain.py')
  tiny_method(tiny_config, 'inscon', **{'encoder.name': 'mine.plain', 'cell.size': 2, 'views.size': 32})
  method = methods.make(tiny_config, 40, mesh8, jnp.float32)
  assert (method.last_stage, method.cell_stage) == ('stage3', 'stage3')


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


@pytest.mark.parametrize(('field', 'part'), [('method', 'make'), ('encoder.name', 'build'), ('task', 'run'),
                                             ('data.name', 'open_source')])
def test_a_module_that_lacks_its_part_is_told(tiny_config, mine, monkeypatch, field, part):
  (mine / 'mine').mkdir()
  (mine / 'mine' / 'empty.py').touch()
  monkeypatch.setattr(sys, 'argv', ['conic_jax', *flags_of(tiny_config), f'--config.{field}=mine.empty'])
  with pytest.raises(SystemExit, match=f"^conic_jax: The module 'mine.empty' has no '{part}': docs/extend"):
    main.command()


def test_an_export_that_lacks_its_target_is_told(mine):
  (mine / 'mine').mkdir()
  (mine / 'mine' / 'empty.py').touch()
  with pytest.raises(UserError, match=r"'mine\.empty' has no 'TARGET'"):
    targets.find('mine.empty')
