"""Every preset of every config loads, and the papers' own are the papers' settings."""
import importlib

import pytest

from conic_jax import methods
from conic_jax.command_line import load

DATA = ('photos', 'cifar10', 'imagenet100', 'folder')
SAMPLED = tuple(f'sampled_{count}' for count in (1024, 4096, 16384, 65536))
PRESETS = {
  'conic': ('imagenet', *DATA), 'conic_s': ('imagenet', *DATA), 'exemplar': ('imagenet', *DATA),
  'data_parallel': ('imagenet', *DATA),
  'one_million': ('imagenet', '1000', 'no_prior', 'no_smoothing', 'no_mlp', *SAMPLED, *DATA)}


def test_every_method_has_a_config():
  assert sorted(PRESETS) == methods.available()


@pytest.mark.parametrize(('name', 'preset'), [(name, preset) for name in PRESETS for preset in PRESETS[name]])
def test_presets_load(name, preset):
  config = load(f'configs/{name}.py:{preset}')
  assert (config.task, config.method, config.num_instances) == ('pretrain', name, 0)
  small = preset in ('photos', 'cifar10')
  assert config.data.name == {'photos': 'photos', 'cifar10': 'cifar10', 'imagenet100': 'folder',
                              'folder': 'folder'}.get(preset, 'imagenet2012')
  assert config.views.size == (32 if small else 224)


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


def test_an_unknown_preset_is_told():
  module = importlib.import_module('configs.one_million')
  with pytest.raises(ValueError, match='there is: imagenet, 1000, no_prior'):
    module.get_config('nope')
