"""Every preset of every config loads, the papers' own are the papers' settings, and all fields are flags."""
import ast
import dataclasses
import importlib
import re
import sys
from pathlib import Path

import pytest

from conic_jax import main, methods, optim, recipe
from conic_jax.command_line import load
from conic_jax.errors import UserError
from conic_jax.evals.finetune import FinetuneSettings
from conic_jax.evals.linear import LinearSettings
from conic_jax.evals.segment import Segmentation
from conic_jax.evals.svm import SvmSettings
from conic_jax.memories.instance_rows import RowsSgd
from conic_jax.pretraining import settings
from conic_jax.views import Views, evaluated

FILES = sorted((Path(__file__).parent.parent / 'configs').glob('*.py'))

DATA = ('photos', 'cifar10', 'imagenet100', 'folder')
SAMPLED = tuple(f'sampled_{count}' for count in (1024, 4096, 16384, 65536))
CO2 = tuple(f'{name}_{value:g}' for name, values in (('alpha', (0.1, 0.3, 1, 3, 10)),
                                                     ('tau', (0.02, 0.04, 0.06, 0.08, 0.1)))
            for value in values)
INSCON = ('single', 'multi', 'cell', 'tau_0.1', 'tau_0.2', 'tau_0.3', 'tau_0.4', 'res4', 'res5')
# The presets of each config beside those of the data sets.
PRESETS = {name: ('imagenet', *own, *DATA) for name, own in {
  'conic': (), 'conic_s': (), 'exemplar': (), 'data_parallel': (), 'moco_v1': (), 'moco_v2': (),
  'co2_moco_v1': CO2, 'co2_moco_v2': CO2, 'align_uniform': (), 'inscon': INSCON, 'simclr': (), 'byol': (),
  'instdisc': ('full',), 'pic': ('multi_crop',),
  'one_million': ('1000', 'no_prior', 'no_smoothing', 'no_mlp', *SAMPLED)}.items()}
METHODS = {'moco_v1': 'moco', 'moco_v2': 'moco', 'co2_moco_v1': 'co2', 'co2_moco_v2': 'co2'}


def test_every_method_has_a_config():
  assert sorted({METHODS.get(name, name) for name in PRESETS}) == methods.available()


@pytest.mark.parametrize(('name', 'preset'), [(name, preset) for name in PRESETS for preset in PRESETS[name]])
def test_presets_load(name, preset):
  config = load(f'configs/{name}.py:{preset}')
  assert (config.task, config.method, config.num_instances) == ('pretrain', METHODS.get(name, name), 0)
  if preset == 'folder':
    config, _ = recipe.resolve(settings.choose_splits(config)[0], recipe.plain_facts(5_000_000, True, 8))
    assert not recipe.open_fields(config)
  assert optim.make_schedule(config.optimizer, config.epochs, 10)(0) > 0
  small = preset in ('photos', 'cifar10')
  assert config.data.name == {'photos': 'photos', 'cifar10': 'cifar10', 'imagenet100': 'folder',
                              'folder': 'folder'}.get(preset, 'imagenet2012')
  assert config.views.size == (32 if small else 160 if preset == 'multi_crop' else 224)


def test_runs_of_different_methods_and_presets_do_not_meet():
  runs = [load(f'configs/{name}.py:{preset}').run for name in PRESETS for preset in PRESETS[name]]
  assert len(set(runs)) == len(runs)


def test_one_million_is_the_papers():
  """Experiment Settings, and the rows of Table 2, 3 and 6."""
  config = load('configs/one_million.py')
  sgd = config.optimizer
  assert (sgd.learning_rate, sgd.momentum, sgd.weight_decay, sgd.warmup_epochs) == (0.48, 0.9, 1e-4, 10)
  assert (config.classifier.momentum, config.classifier.weight_decay) == (0.9, 1e-4)
  assert (config.batch_size, config.epochs, config.views.count, config.head.features) == (4096, 200, 2, 128)
  assert (config.temperature, config.encoder.name) == (0.15, 'resnet50')
  assert (config.smoothing.alpha, config.smoothing.k, config.prior.batch_norm) == (0.2, 100, 'running')
  assert load('configs/one_million.py:1000').epochs == 1000
  assert load('configs/one_million.py:no_mlp').head.hidden == 0
  without = load('configs/one_million.py:no_smoothing')
  assert (without.smoothing.alpha, without.prior.batch_norm) == (0, 'running')
  for preset in ('no_prior', *SAMPLED):
    without = load(f'configs/one_million.py:{preset}')
    assert (without.smoothing.alpha, without.prior.batch_norm) == (0, 'none')
  assert [load(f'configs/one_million.py:{preset}').classifier.drawn for preset in SAMPLED] == [
    1024, 4096, 16384, 65536]


def test_conic_s_is_the_papers():
  config = load('configs/conic_s.py')
  assert (config.classifier.window, config.batch_size) == (65536, 512)
  assert (config.alpha, config.temperature) == (2.5, 0.1)


def test_moco_is_the_papers():
  second, first = load('configs/moco_v2.py'), load('configs/moco_v1.py')
  for config in (first, second):
    sgd = config.optimizer
    assert (config.batch_size, config.epochs, sgd.learning_rate, sgd.warmup_epochs) == (256, 200, 0.03, 0)
    assert (sgd.momentum, sgd.weight_decay, sgd.decay_vectors, sgd.per_epoch) == (0.9, 1e-4, True, True)
    assert (config.queue.size, config.queue.mask_own, config.head.features) == (65536, False, 128)
    assert (config.momentum.start, config.momentum.schedule) == (0.999, 'constant')
    assert (config.batch_norm.groups, config.batch_norm.shuffle) == (8, True)
    assert (config.views.crop, config.views.grayscale) == ((0.2, 1.0), 0.2)
  assert (first.temperature, first.head.hidden, first.optimizer.schedule) == (0.07, 0, 'steps')
  assert first.optimizer.milestones == (120, 160)
  views = first.views
  assert (views.jitter, views.blur, views.strength, views.brightness, views.hue) == (1.0, 0.0, 1.0, 0.4, 0.4)
  assert (second.temperature, second.head.hidden, second.head.norm) == (0.2, 2048, False)
  assert (second.optimizer.schedule, second.views.strength, second.views.blur) == ('cosine', 0.5, 0.5)


def test_co2_is_moco_with_a_term():
  for name, alpha, temperature in (('moco_v1', 10.0, 0.04), ('moco_v2', 0.3, 0.05)):
    own, base = load(f'configs/co2_{name}.py'), load(f'configs/{name}.py')
    assert (own.consistency.alpha, own.consistency.temperature) == (alpha, temperature)
    with own.unlocked():
      del own.consistency
    own.method, own.run = base.method, base.run
    assert own == base
  assert load('configs/co2_moco_v2.py:alpha_3').consistency.alpha == 3
  assert load('configs/co2_moco_v1.py:tau_0.06').consistency.temperature == 0.06


def test_inscon_is_the_papers():
  """Table 1, and the presets of Tables 7 to 9."""
  config = load('configs/inscon.py')
  assert (config.batch_size, config.epochs, config.optimizer.learning_rate) == (256, 200, 0.03)
  assert (config.temperature, config.cell.temperature) == (0.2, 0.2)
  assert (config.head.features, config.cell.features) == (128, 256)
  assert (config.queue.size, config.cell.queue, config.cell.size) == (65536, 64512, 3)
  heads = {preset: load(f'configs/inscon.py:{preset}') for preset in INSCON}
  assert [(heads[name].multi.enabled, heads[name].cell.enabled) for name in ('single', 'multi', 'cell')] == [
    (False, False), (True, False), (False, True)]
  assert [heads[f'tau_{temperature}'].cell.temperature for temperature in (0.1, 0.2, 0.3, 0.4)] == [
    0.1, 0.2, 0.3, 0.4]
  assert [heads[position].cell.position for position in ('res4', 'res5')] == ['res4', 'res5']


def test_simclr_and_byol_are_the_papers():
  simclr, byol = load('configs/simclr.py'), load('configs/byol.py')
  for config, rate, decay in ((simclr, 0.3, 1e-6), (byol, 0.2, 1.5e-6)):
    lars = config.optimizer
    assert (lars.name, lars.trust, lars.decay_vectors, lars.weight_decay) == ('lars', 0.001, False, decay)
    assert (config.batch_size, config.epochs, lars.warmup_epochs) == (4096, 1000, 10)
    assert lars.learning_rate == pytest.approx(rate * 4096 / 256)
    views = config.views
    assert (views.crop, views.interpolation, views.colour) == ((0.08, 1.0), 'bicubic', 'tensorflow')
    assert (config.encoder.zero_gamma, config.head.output_bias) == (True, False)
  assert (simclr.optimizer.lr_in_momentum, byol.optimizer.lr_in_momentum) == (True, False)
  assert (simclr.views.additive_brightness, byol.views.additive_brightness) == (False, True)
  assert (simclr.loss.reduction, byol.predictor.output_bias) == ('sum', False)
  assert (simclr.temperature, simclr.views.mean, simclr.views.std) == (0.1, (0, 0, 0), (1, 1, 1))
  assert (byol.momentum.start, byol.momentum.schedule) == (0.996, 'cosine')
  assert (byol.head.hidden, byol.head.features, byol.predictor.hidden) == (4096, 256, 4096)
  assert (byol.views.blur, byol.views.solarise) == (1.0, 0.0)
  assert (byol.second_view.blur, byol.second_view.solarise) == (0.1, 0.2)


@pytest.mark.parametrize('preset', DATA)
@pytest.mark.parametrize('name', ['simclr', 'byol'])
def test_other_presets_of_simclr_and_byol_are_not_their_codes(name, preset):
  config = load(f'configs/{name}.py:{preset}')
  if preset == 'folder':
    config, _ = recipe.resolve(settings.choose_splits(config)[0], recipe.plain_facts(3000, False, 1))
  views = config.views
  assert (views.interpolation, views.colour, views.additive_brightness) == ('bilinear', 'torchvision', False)
  assert (config.optimizer.name, config.head.output_bias, config.encoder.zero_gamma) == ('sgd', True, False)
  assert config.predictor.output_bias if name == 'byol' else config.loss.reduction == 'mean'


def test_pic_is_its_releases():
  one, several = load('configs/pic.py'), load('configs/pic.py:multi_crop')
  assert (one.views.count, one.views.crop, one.small_views.count) == (1, (0.2, 1.0), 0)
  assert (several.views.crop, several.small_views.crop) == ((0.14, 1.0), (0.08, 0.14))
  for config in (one, several):
    assert (config.batch_size, config.optimizer.learning_rate, config.temperature) == (256, 0.03, 0.2)


@pytest.mark.parametrize(('name', 'first'), [
  ('one_million', 'imagenet, 1000, no_prior'), ('co2_moco_v1', 'imagenet, imagenet100'),
  ('inscon', 'imagenet, imagenet100'), ('moco_v1', 'imagenet, imagenet100')])
def test_an_unknown_preset_is_told(name, first):
  module = importlib.import_module(f'configs.{name}')
  with pytest.raises(ValueError, match=f'available: {first}'):
    module.get_config('nope')


# ---- Groups -----------------------------------------------------------------------------------


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_nothing_is_deleted(path):
  assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Delete)]
  assert not re.search(r'\.(pop|__delattr__|__delitem__)\(', path.read_text())


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_every_field_of_a_group_has_its_comment(path):
  """On its line, or on the one above; what is spread from another group has it there."""
  lines = path.read_text().splitlines()
  for call in ast.walk(ast.parse(path.read_text())):
    named = isinstance(call, ast.Call) and ast.unparse(call.func) in ('group', 'common.group')
    if named and isinstance(call.args[0], ast.Dict):
      for key in filter(None, call.args[0].keys):
        above, line = lines[key.lineno - 2:key.lineno]
        assert '  # ' in line or above.lstrip().startswith('# '), line


@pytest.mark.parametrize(('settings', 'file', 'group'), [
  (LinearSettings, 'linear', 'linear'), (FinetuneSettings, 'finetune', 'finetune'),
  (SvmSettings, 'svm', 'svm'), (Segmentation, 'segment', 'segmentation'), (RowsSgd, 'exemplar', 'classifier'),
  *((kind, name, group) for name in PRESETS for kind, group in ((Views, 'views'), (LinearSettings, 'linear')))
])
def test_every_field_of_a_dataclass_is_one_of_its_group_alone(settings, file, group):
  """So that it is a flag; the dataclass has no value of its own."""
  fields = dataclasses.fields(settings)
  assert {field.name for field in fields} <= set(load(f'configs/{file}.py')[group])
  assert not [field.name for field in fields if field.default is not dataclasses.MISSING]


def test_evaluation_normalises_as_the_configs_do_by_default():
  usual, seen = load('configs/conic.py').views, evaluated({})
  assert (seen.size, seen.aspect, seen.mean, seen.std) == (usual.size, usual.aspect, usual.mean, usual.std)


# ---- A config of one's own ----------------------------------------------------------------------


def write_config(folder, *lines, base='conic'):
  """A user's config of these lines on top of one of ours."""
  path = folder / 'mine.py'
  path.write_text('\n  '.join([f'from configs import common, {base}\n\n\ndef get_config(preset="photos"):',
                               f'config = {base}.get_config(preset)', *lines, 'return config\n']))
  return str(path)


@pytest.mark.parametrize(('line', 'answer'), [
  ('config.optimizer.learing_rate = 1',
   'There is no config.optimizer.learing_rate; did you mean config.optimizer.learning_rate?'),
  ('config.batchsize = 8', 'There is no config.batchsize; did you mean config.batch_size?'),
  ('config.learning_rate = 1',
   'There is no config.learning_rate; did you mean config.optimizer.learning_rate?'),
  ('config.views.update(crp=1)', 'There is no config.views.crp; did you mean config.views.crop?'),
  ('config.optimiser.end = 1.0', 'There is no config.optimiser; did you mean config.optimizer?'),
  ('config.update_from_flattened_dict({"views.crp": 1})',
   'There is no config.views.crp; did you mean config.views.crop?'),
  ('config.head = common.head(hiden=1)', 'There is no hiden; did you mean hidden?'),
  ('config.optimizer.end = "late"', "config.optimizer.end takes a number such as 0.0, not 'late'."),
  ('del config.alpha', 'config.alpha is deleted in `with config.unlocked():` alone.')])
def test_a_mistake_in_a_file_is_answered_in_one_sentence(line, answer, tmp_path):
  with pytest.raises(UserError) as error:
    load(write_config(tmp_path, line))
  assert str(error.value) == answer


def test_a_field_that_is_like_none_is_told_how_to_be_added(tmp_path):
  with pytest.raises(UserError, match=r'no config\.bank; available: accumulate, .* in `with config\.unl'):
    load(write_config(tmp_path, 'config.bank = common.group({"size": 1})'))


def test_a_misspelt_field_of_a_file_prints_no_traceback(tmp_path, monkeypatch):
  path = write_config(tmp_path, 'config.optimizer.learing_rate = 1', base='knn')
  monkeypatch.setattr(sys, 'argv', ['conic_jax', f'--config={path}:photos'])
  with pytest.raises(SystemExit) as exit:
    main.command()
  assert str(exit.value).startswith('conic_jax: There is no config.optimizer; ')


def test_fields_are_added_on_purpose(tmp_path):
  config = load(write_config(
    tmp_path, 'with config.unlocked():', '  config.optimizer.nesterov = True',
    '  config.bank = common.group({"size": 1})', 'config.bank.size = 2'))
  assert (config.optimizer.nesterov, config.bank.size, config.views.size) == (True, 2, 32)
  assert config.is_locked
  assert config.optimizer.is_locked


def test_an_error_of_the_files_own_stays_one(tmp_path):
  with pytest.raises(KeyError, match='nothing'):
    load(write_config(tmp_path, '{}["nothing"]'))
