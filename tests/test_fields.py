"""Every field of every config: listed with its range and meaning, and refused outside of it."""
import functools
import importlib
import inspect
import itertools
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from support import tiny

from conic_jax import fields
from conic_jax.command_line import load
from conic_jax.errors import UserError
from conic_jax.evals import standalone
from conic_jax.pretraining import training

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py') if 'def get_config(' in path.read_text())
NAN, INFINITE = float('nan'), float('inf')
# Values of every type that are senseless somewhere.
STRANGE = [-5, -1, 0, 1.5, 2, 300, 2**32, -0.5, 1e9, NAN, INFINITE, 'nonsense', '', True, (), (0,), (-1,),
           (1.5,), (300,), ('a',), (NAN,), (0.2,), (0.0, 0.5), (0.5, 0.2), (0.2, 1.5), (-1.0, 2.0),
           (0.2, INFINITE), (0, 9), (1.0, 1.0, 0.0), (1, 2, NAN), (1.0, 2.0, 3.0, 4.0)]


@functools.lru_cache
def every_config(name):
  module = importlib.import_module(f'configs.{name}')
  default = inspect.signature(module.get_config).parameters['preset'].default
  presets = getattr(module, 'PRESETS', None) or getattr(module, 'DATA', None) or ()
  return [load(f'{ROOT}/configs/{name}.py:{preset}') for preset in dict.fromkeys([default, *presets])]


@pytest.mark.parametrize('name', NAMES)
def test_every_field_of_every_config_is_listed_and_inside(name):
  for config in every_config(name):
    fields.check(config)
    for path, _ in fields.leaves(config):
      field = fields.field_of(path)
      assert field is not None, path
      assert 0 < len(field.meaning) < 80


def changed(config, path, value):
  """A copy with a field changed, whatever its type."""
  whole = config.to_dict()
  *groups, name = path.split('.')
  functools.reduce(dict.__getitem__, groups, whole)[name] = value
  return ConfigDict(whole, type_safe=False)


@pytest.mark.parametrize('name', NAMES)
def test_every_field_is_refused_outside(name):
  config = every_config(name)[0]
  for path, value in fields.leaves(config):
    rule = fields.field_of(path).rule
    refused = [strange for strange in STRANGE if rule.mistake(strange)]
    own = {type(value)} | ({int} if isinstance(value, float) else set())
    assert {type(strange) for strange in refused} >= {int, float, str, tuple} - own or value is None
    outside = [strange for strange in refused if rule.is_kind(strange)]
    assert outside or not (rule.range or rule.choices), path
    for strange in (refused[0], *outside[:1]):
      with pytest.raises(UserError) as error:
        fields.check(changed(config, path, strange))
      assert str(error.value) == f'config.{path} is {strange!r}{rule.mistake(strange)}'
      assert 'must' in str(error.value) or 'available: ' in str(error.value)


@pytest.mark.parametrize(('path', 'value', 'told'), [
  ('log_every', 0, ': it must be at least 1.'), ('epochs', -1, ': it must be at least 1.'),
  ('max_steps', -5, ': it must be at least 0.'), ('seed', -1, ': it must be from 0 to 4294967295.'),
  ('batch_size', 1.5, ': it must be a whole number.'), ('figures', 1, ': it must be true or false.'),
  ('eval.k', (0,), ': it must have at least one value, each must be at least 1.'),
  ('eval.k', (), ': it must have at least one value, each must be at least 1.'),
  ('eval.k', 5, ': it must be a tuple of whole numbers.'),
  ('views.size', 0, ': it must be at least 1.'), ('views.size', -3, ': it must be at least 1.'),
  ('views.crop', (0.2,), ': it must have two values above 0 and at most 1, the smaller first.'),
  ('views.crop', (0.2, 1.5), ': it must have two values'), ('views.crop', (0.9, 0.2), 'the smaller first'),
  ('views.count', 0, ': it must be at least 1.'), ('views.flip', 1.5, ': it must be from 0 to 1.'),
  ('views.std', (0.1, 0.0, 0.1), ': it must have 3 values, each must be above 0.'),
  ('views.jitter', NAN, ': it must be from 0 to 1.'),
  ('views.colour', 'pil', '; available: torchvision, tensorflow.'),
  ('encoder.width', 0.0, ': it must be above 0.'), ('encoder.blocks', (0,), ': each must be at least 1.'),
  ('encoder.output_stride', 4, ': it must be 8, 16 or 32.'), ('head.features', 0, ': it must be at least 1.'),
  ('optimizer.learning_rate', -0.1, ': it must be 0 or above.'),
  ('optimizer.learning_rate', INFINITE, ': it must be 0 or above.'),
  ('optimizer.momentum', 1.0, ': it must be at least 0 and below 1.'),
  ('optimizer.warmup_epochs', 3.0, ': it must be at most config.epochs, 2.'),
  ('optimizer.name', 'adam', '; available: sgd, lars, adamw.'),
  ('mesh.data', 0, ': it must be at least 1, or -1.'),
  ('linear.learning_rates', (), ': it must have at least one value, each must be above 0.'),
  ('linear.milestones', (1.5,), ': each must be between 0 and 1.'),
  ('temperature', 0.0, ': it must be above 0.'),
  ('checkpoint.every_epochs', 0.0, ': it must be above 0.'), ('probe.times', 0, ': it must be at least 1.')])
def test_pretraining_refuses_it_before_anything_is_read(tmp_path, path, value, told):
  config = changed(tiny(tmp_path / 'no images', tmp_path / 'run'), path, value)
  with pytest.raises(UserError) as error:
    training.pretrain(config)
  shown = '3' if 'warmup' in path else repr(value)
  assert str(error.value).startswith(f'config.{path} is {shown}')
  assert told in str(error.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(('file', 'path', 'value'), [
  ('finetune', 'finetune.labels', 0.0), ('finetune', 'finetune.epochs', 0), ('svm', 'svm.folds', 1),
  ('segment', 'segmentation.rates', (0,)), ('linear', 'linear.epochs', 0), ('knn', 'eval.k', ())])
def test_evaluations_refuse_it_too(file, path, value, tmp_path):
  config = load(f'{ROOT}/configs/{file}.py:folder')
  config.encoder = 'random'
  with pytest.raises(UserError, match=f'^config.{path} is '):
    standalone.evaluate(changed(config, path, value))


def test_fields_that_are_open_or_not_listed_are_left_alone():
  fields.check(ConfigDict({'epochs': 1, 'own': {'field': -1}, 'views': {'size': None, 'mine': 'x'}}))


def test_the_description_has_a_line_a_field():
  config = load(f'{ROOT}/configs/conic.py:folder')
  lines = fields.describe(config).splitlines()
  assert len(lines) == len(list(fields.leaves(config)))
  size, = (line for line in lines if line.startswith('--config.views.size='))
  assert size.split(maxsplit=1)[1].strip() == 'whole number, at least 1' + size.partition('at least 1')[2]
  assert size.endswith('pixels per side')
  assert any(line.startswith('--config.epochs=auto ') for line in lines)
  assert all(len(line) < 190 for line in lines)


def test_no_field_is_listed_that_no_config_has():
  """Groups share their fields, so that a field is one of some config in some of its groups."""
  seen = {path for name in NAMES for config in every_config(name) for path, _ in fields.leaves(config)}
  listed = {id(field): f'{group}.{name}' for group, inside in fields.FIELDS.items()
            for name, field in inside.items()}
  used = {id(fields.field_of(path)) for path in seen}
  assert {path for field, path in listed.items() if field not in used} == set()
  assert len(set(itertools.chain(*fields.FIELDS.values()))) > 100
