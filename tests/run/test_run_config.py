"""config.json of a run: fields that its version did not write, and those that this one does not know."""
import json
import shutil
import types

import jax.numpy as jnp
import pytest
from test_saved_runs import SAVED

from conic_jax import models
from conic_jax.errors import UserError
from conic_jax.evals.encoders import open_encoder, pretraining_config
from conic_jax.export import card
from conic_jax.report.read_run import read_run
from conic_jax.run.run_config import read_config
from conic_jax.views import evaluated

IDENTITY = ('method', 'encoder', 'views')


@pytest.fixture
def run(tmp_path):
  """A run that an older version began."""
  shutil.unpack_archive(SAVED / 'byol.zip', tmp_path)
  return tmp_path / 'run'


def rewrite(run, change):
  """Changes a run's config.json."""
  path = run / 'config.json'
  config = json.loads(path.read_text())
  change(config)
  path.write_text(json.dumps(config))
  return config


def test_any_field_may_be_missing(run):
  """One field is left out at a time: the network, the view, the card and the page are made all the same."""
  whole = (run / 'config.json').read_text()
  config = json.loads(whole)
  fields = [(name,) for name in config if name not in IDENTITY]
  fields += [(group, name) for group in ('encoder', 'views', 'data', 'eval', 'recipe', 'versions')
             for name in config.get(group, {}) if (group, name) != ('encoder', 'name')]
  assert len(fields) > 50
  network = models.build_encoder(types.SimpleNamespace(**read_config(run)['encoder']), jnp.float32)
  for field in fields:
    without = json.loads(whole)
    group = without[field[0]] if len(field) == 2 else without
    del group[field[-1]]
    (run / 'config.json').write_text(json.dumps(without))
    settings = pretraining_config(run)
    rebuilt = models.build_encoder(settings.encoder, jnp.float32)
    if field[0] != 'encoder':
      assert rebuilt == network
    assert evaluated(settings.views).size in (config['views']['size'], 224)
    assert 'byol' in card.text('safetensors', network, card.of_run(run, read_config(run)), run / 'out')
    assert 'byol' in read_run(run).title


def test_a_setting_that_is_unknown_is_named(run, capsys):
  rewrite(run, lambda config: (config['encoder'].update(depth=3, anti_alias='blur'),
                               config['versions'].update(conic_jax='9.1')))
  open_encoder(str(run))
  said = capsys.readouterr().err
  assert said.count('\n') == 1
  assert "by conic_jax 9.1, whose settings encoder.anti_alias = 'blur', encoder.depth = 3 this one" in said


def test_an_unknown_version_is_no_obstacle(run, capsys):
  rewrite(run, lambda config: (config['encoder'].update(depth=3), config.update(versions=[1])))
  open_encoder(str(run))
  assert 'by another version, whose setting encoder.depth = 3 this one' in capsys.readouterr().err


def test_what_is_known_is_not_spoken_of(run, capsys):
  open_encoder(str(run))
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize(('change', 'problem'), [
  (lambda config: config['encoder'].pop('name'), 'does not name its encoder'),
  (lambda config: config['encoder'].update(name=7), 'does not name its encoder'),
  (lambda config: config.update(data=[1]), 'data must be an object'),
  (lambda config: config.pop('method'), 'is no run'),
])
def test_what_cannot_be_read_is_a_sentence(run, change, problem):
  rewrite(run, change)
  with pytest.raises(UserError, match=problem):
    read_config(run)
