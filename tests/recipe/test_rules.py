"""The rules: values that were given stay, and what is chosen suits every method, number and machine."""
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.auto import OPEN
from conic_jax import methods, optim, recipe
from conic_jax.command_line import load
from conic_jax.data.sampler import Sampler
from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.recipe import Facts
from conic_jax.recipe.rules import MINUTES_ON_A_CPU, RULES, TRAVEL

CONFIGS = ('align_uniform', 'byol', 'co2_moco_v1', 'co2_moco_v2', 'conic', 'conic_s', 'data_parallel',
           'exemplar', 'inscon', 'instdisc', 'moco_v1', 'moco_v2', 'one_million', 'pic', 'simclr')
PHOTOGRAPHS = Facts(3000, 256)


def resolved(name='conic', facts=PHOTOGRAPHS, **given):
  config = load(f'configs/{name}.py:folder')
  config.data.train = config.data.test = ''
  config.update_from_flattened_dict(given)
  return recipe.resolve(config, facts)


def test_every_open_field_has_a_rule_and_every_rule_a_field():
  assert set(RULES) == set(OPEN) - {'data.train', 'data.test'}


@pytest.mark.parametrize('name', CONFIGS)
def test_every_open_field_gets_a_value_of_its_type_and_a_reason(name):
  config, choices = resolved(name)
  assert not recipe.open_fields(config)
  for choice in choices:
    assert type(choice.value) is OPEN[choice.field], choice
    assert choice.reason


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('facts', [
  Facts(64, 8), Facts(100, 500, aspect=9.0), Facts(3000, 32, devices=8),
  Facts(20_000, 96, seconds_per_image=0.01), Facts(150_000, 300, accelerator=True, devices=8),
  Facts(2_000_000, 300, accelerator=True, devices=8)],
  ids=['64', '100', '3000', '20000', 'GPU 150000', 'GPU 2000000'])
def test_a_method_can_be_made_and_trained_with_what_is_chosen(name, facts, mesh8):
  config, _ = resolved(name, facts)
  sampler = Sampler(facts.num_images, config.batch_size, 0, **config.sampler)
  assert config.batch_size % facts.devices == 0
  assert config.batch_size <= max(8, facts.num_images / 8)
  schedule = optim.make_schedule(config.optimizer, config.epochs, sampler.steps_per_epoch)
  assert math.isfinite(float(schedule(0)))
  optim.make_optimizer(config.optimizer)
  if facts.num_images < 100_000 and config.batch_size % mesh8.size == 0:
    methods.make(config, facts.num_images, mesh8, meshes.compute_dtype('float32'))
  if 'queue' in config:
    assert config.queue.size <= max(config.batch_size, facts.num_images // 2)


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(num_images=st.integers(64, 3_000_000), short=st.integers(1, 5000), aspect=st.floats(1, 50),
       devices=st.integers(1, 64), accelerator=st.booleans(), speed=st.floats(1e-5, 1e-3))
def test_what_is_chosen_is_sound_for_any_images(num_images, short, aspect, devices, accelerator, speed):
  facts = Facts(num_images, short, aspect, accelerator=accelerator, devices=devices, seconds_per_image=speed)
  if not accelerator and num_images * speed > 60 * MINUTES_ON_A_CPU:
    with pytest.raises(UserError, match='one epoch takes'):
      resolved(facts=facts)
    return
  config, _ = resolved(facts=facts)
  assert config.batch_size % devices == 0
  assert config.epochs >= 1
  assert 0 < config.views.crop[0] < config.views.crop[1] <= 1
  assert config.views.size >= 32
  if not accelerator:
    assert config.epochs * num_images * speed <= 60 * MINUTES_ON_A_CPU


@pytest.mark.parametrize(('field', 'value'), [
  ('batch_size', 32), ('epochs', 7), ('optimizer.learning_rate', 0.5), ('views.size', 96),
  ('views.crop', (0.5, 0.7)), ('classifier.lr_scale', 1.0), ('encoder.name', 'resnet50'),
  ('linear.learning_rates', (2.0,))])
def test_a_value_that_was_given_is_never_changed(field, value):
  config, choices = resolved(**{field: value})
  node = config
  for name in field.split('.'):
    node = node[name]
  assert node == value
  assert field not in [choice.field for choice in choices]


def test_rows_turn_by_the_same_angle_at_every_batch_rate_and_temperature():
  """η s / ((1 − m) B τ r²), the first-order change of a unit row by its own class's gradient."""
  for given_values in ({}, {'batch_size': 64}, {'optimizer.learning_rate': 0.02}, {'temperature': 0.2},
                       {'classifier.norm': 0.5}):
    config, _ = resolved(**given_values)
    rows = config.classifier
    turn = (config.optimizer.learning_rate * rows.lr_scale
            / ((1 - rows.momentum) * config.batch_size * config.temperature * rows.norm ** 2))
    assert turn == pytest.approx(TRAVEL, rel=0.06)


def test_epochs_fit_the_minutes_and_are_those_of_the_papers_where_there_is_time():
  slow, _ = resolved(facts=Facts(3000, 256, seconds_per_image=0.01))
  assert slow.epochs * 3000 * 0.01 == pytest.approx(60 * slow.minutes, rel=0.1)
  assert slow.epochs <= 60 * slow.minutes / 30
  fast, _ = resolved(facts=Facts(3000, 256, seconds_per_image=1e-6))
  assert 100 < fast.epochs <= 1000
  paper, _ = resolved(facts=Facts(1_281_167, 256, accelerator=True))
  assert (paper.epochs, paper.minutes, paper.encoder.name, paper.views.size) == (200, 0.0, 'resnet50', 224)


@pytest.mark.parametrize(('name', 'seconds', 'said'), [
  ('conic', 0.04, 'SimCLR (configs/simclr.py:folder) was ahead'), ('conic', 0.01, None),
  ('simclr', 0.04, None), ('simclr', 0.2, 'FEW: below 8 expect little')])
def test_few_epochs_are_told_where_rows_are_seen_once_in_each(name, seconds, said):
  _, choices = resolved(name, facts=Facts(3000, 256, seconds_per_image=seconds))
  reason = next(choice.reason for choice in choices if choice.field == 'epochs')
  assert reason.endswith(said) if said and 'FEW' not in said else (said or 'ms an image') in reason
  assert said or 'few' not in reason.lower()


def test_minutes_that_allow_no_epoch_are_told():
  with pytest.raises(UserError, match=r'config\.minutes is 1 and one epoch takes 50 minutes here'):
    resolved(facts=Facts(3000, 256, seconds_per_image=1.0), minutes=1.0)


def test_few_epochs_are_named():
  _, choices = resolved(facts=Facts(3000, 256, seconds_per_image=0.2))
  assert 'FEW' in next(choice.reason for choice in choices if choice.field == 'epochs')


def test_crops_of_strips_fit_into_them():
  """Crops are nearly square: the largest, of aspect 1, is no higher than the strip."""
  config, _ = resolved(facts=Facts(3000, 100, aspect=8.0))
  assert config.views.crop[1] * 8 * 100 * 100 <= 100 * 100 * 1.001
