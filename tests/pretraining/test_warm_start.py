"""Training that starts from weights: in every method, in the table at the end, and what does not fit."""
import dataclasses
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict
from support import lose_what_followed, losses_by_step, tiny, tiny_method

from conic_jax import models, recipe
from conic_jax.command_line import load
from conic_jax.errors import UserError
from conic_jax.evals import encoders
from conic_jax.export import names, vits
from conic_jax.hardware import mesh as meshes
from conic_jax.memories.momentum_encoder import MomentumEncoder
from conic_jax.methods import available
from conic_jax.pretraining import train_step, training, warm_start
from conic_jax.run.session import Session

pytestmark = pytest.mark.slow


def saved(config, path, **changes):
  """A file of random weights, not those of any seed of a run, of the config's network but for the changes."""
  settings = config.encoder.copy_and_resolve_references()
  settings.update(changes)
  opened = encoders.open_encoder('random', settings, 'float32', 11)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda leaf: leaf + np.float32(0.01) * rng.random(leaf.shape, np.float32),
                           opened.variables)
  safetensors.numpy.save_file(names.named(variables, names.torchvision), path)
  return dataclasses.replace(opened, variables=variables)


@pytest.fixture(scope='module')
def start(image_folder, tmp_path_factory):
  """The file of weights that fit the tiny network, and its encoder."""
  path = tmp_path_factory.mktemp('weights') / 'start.safetensors'
  return path, saved(tiny(image_folder, 'unused'), path)


def task_of(config, tmp_path, devices=1):
  """The task of a run."""
  mesh = meshes.make_mesh(devices=jax.devices()[:devices])
  with Session(tmp_path / 'session', mesh, lambda line: None) as session:
    return training.prepare(config, session)


def assert_equal(found, expected):
  def plain(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
  chex.assert_trees_all_equal(jax.tree.map(plain, found), jax.tree.map(plain, expected))


@pytest.mark.parametrize('method', available())
def test_every_method_starts_from_the_weights(tiny_config, start, tmp_path, method):
  config = tiny_method(tiny_config, method)
  path, encoder = start
  cold = task_of(config, tmp_path, devices=8).begin()
  config.encoder.weights = str(path)
  task = task_of(config, tmp_path, devices=8)
  state = task.begin()
  for collection in ('params', 'batch_stats'):
    found = getattr(state, collection)
    assert_equal(found['encoder'], encoder.variables[collection])
    others = {name: part for name, part in getattr(cold, collection).items() if name != 'encoder'}
    assert_equal({name: part for name, part in found.items() if name != 'encoder'}, others)
  assert_equal(task.initial_statistics(), state.batch_stats)
  for name, memory in task.method.memories.items():
    if isinstance(memory, MomentumEncoder):
      assert_equal(state.memories[name]['params']['encoder'], encoder.variables['params'])
    else:
      assert_equal(state.memories[name], cold.memories[name])
  jax.tree.map(lambda leaf, wanted: pytest.fail(str(wanted)) if leaf.sharding != wanted.sharding else None,
               state, task.shapes)


def test_the_table_at_the_end_has_the_start(tiny_config, start, capsys):
  """At a rate of 0, and with batch norm's statistics of its own, the encoder ends as it began."""
  tiny_config.encoder.weights = str(start[0])
  tiny_config.eval.baselines, tiny_config.optimizer.learning_rate = True, 0.0
  tiny_config.eval.linear, tiny_config.probe.images = False, 0
  summary = training.pretrain(tiny_config)
  out = capsys.readouterr().out
  assert 'The encoder starts from' in out
  assert '\nstart.safetensors' in out.partition('kNN (k = 3)')[2]
  assert summary['baseline_weights']['name'] == tiny_config.encoder.weights
  trained = encoders.open_encoder(tiny_config.run).variables['params']
  assert_equal(trained, encoders.open_encoder(tiny_config.encoder.weights).variables['params'])


def test_the_random_network_beside_it_is_random(tiny_config, start, tmp_path, monkeypatch):
  tiny_config.eval.knn = tiny_config.eval.linear = False
  tiny_config.max_steps = 1
  cold = task_of(tiny_config, tmp_path).begin()
  tiny_config.encoder.weights, seen, finish = str(start[0]), [], training.finish

  def seeing(task, state, random_variables, *rest):
    seen.append(random_variables())
    return finish(task, state, random_variables, *rest)
  monkeypatch.setattr(training, 'finish', seeing)
  training.pretrain(tiny_config)
  assert_equal(seen[0], train_step.variables(cold))


def test_a_stopped_run_goes_on_alike(tiny_config, start):
  tiny_config.encoder.weights, tiny_config.eval.knn, tiny_config.eval.linear = str(start[0]), False, False
  training.pretrain(tiny_config)
  whole = losses_by_step(tiny_config.run)
  lose_what_followed(tiny_config.run, 3)
  assert max(losses_by_step(tiny_config.run)) == 3
  training.pretrain(tiny_config)
  assert losses_by_step(tiny_config.run) == whole


def test_the_prior_sees_the_weights(tiny_config, start, tmp_path):
  config = tiny_method(tiny_config, 'one_million')
  config.eval.knn, config.eval.linear, config.optimizer.learning_rate = False, False, 0.0
  config.probe.images, config.epochs, config.batch_size = 0, 1, 48
  rows = {}
  for weights in ('', str(start[0])):
    config.encoder.weights, config.run = weights, str(tmp_path / f'run{bool(weights)}')
    training.pretrain(config)
    rows[weights] = losses_by_step(config.run)
  assert len(set(map(str, rows.values()))) == 2


def test_an_open_network_is_that_of_the_weights(tiny_config, tmp_path):
  saved(tiny_config, tmp_path / 'start.safetensors', blocks=(2, 1), width=0.25)
  tiny_config.encoder.weights = str(tmp_path / 'start.safetensors')
  with tiny_config.encoder.ignore_type():
    for field in ('name', 'blocks', 'width'):
      tiny_config.encoder[field] = None
  task = task_of(tiny_config, tmp_path)
  assert (task.config.encoder.blocks, task.config.encoder.width) == ((2, 1), 0.25)
  reasons = dict(task.description['recipe']['reasons'])
  assert reasons['encoder.width'] == 'the network of the weights it starts from'


@pytest.mark.parametrize(('changes', 'message'), [
  ({'width': 0.25}, r'width 0\.125 is 0\.25 there\. Give --config\.encoder\.width=0\.25'),
  ({'blocks': (2,)}, r'blocks \(1,\) is \(2,\) there'), ({'stem': 'imagenet'}, 'stem=imagenet')])
def test_weights_of_another_network_are_refused(tiny_config, tmp_path, changes, message):
  saved(tiny_config, tmp_path / 'start.safetensors', **changes)
  tiny_config.encoder.weights = str(tmp_path / 'start.safetensors')
  with pytest.raises(UserError, match=message):
    training.pretrain(tiny_config)
  assert not Path(tiny_config.run, 'checkpoints').exists()


@pytest.mark.parametrize(('weights', 'message'), [
  ('nowhere.pth', 'config.encoder.weights: There is no encoder'), ('random', 'leave it empty'),
  ('.', 'is no run')])
def test_weights_that_are_not_there_are_refused(tiny_config, weights, message):
  tiny_config.encoder.weights = weights
  with pytest.raises(UserError, match=message):
    training.pretrain(tiny_config)


def test_weights_of_a_run_that_saw_images_otherwise_are_refused(tiny_config, tmp_path):
  first = tiny_config.copy_and_resolve_references()
  first.run, first.views.mean, first.epochs = str(tmp_path / 'first'), (0.5, 0.5, 0.5), 1
  first.eval.knn = first.eval.linear = False
  training.pretrain(first)
  tiny_config.encoder.weights = first.run
  with pytest.raises(UserError, match=r'--config\.views\.mean="\(0\.5, 0\.5, 0\.5\)"'):
    training.pretrain(tiny_config)
  tiny_config.views.mean = (0.5, 0.5, 0.5)
  task = task_of(tiny_config, tmp_path)
  assert_equal(task.begin().params['encoder'], encoders.open_encoder(first.run).variables['params'])


def test_a_vision_transformers_positions_are_resized(tiny_config, tmp_path, capsys):
  """From weights for images of 32 pixels, which leave the network to them, to views of 16 pixels."""
  settings = {'name': 'vit_tiny', 'blocks': (1, 1), 'width': 1 / 12, 'patch': 4, 'positions': 'learned'}
  network = models.build_encoder(ConfigDict(settings), jnp.float32)
  variables = jax.jit(network.init)(jax.random.key(3), np.zeros((1, 32, 32, 3), np.float32))
  safetensors.numpy.save_file(vits.to_timm(network, variables), tmp_path / 'start.safetensors')
  tiny_config.encoder.weights = str(tmp_path / 'start.safetensors')
  tiny_config.optimizer.name = 'adamw'
  with pytest.raises(UserError, match=r'Give --config\.encoder\.name=vit_tiny .*positions=learned'):
    task_of(tiny_config, tmp_path)
  tiny_config.encoder.update(settings)
  begun = task_of(tiny_config, tmp_path, devices=8).begin().params['encoder']
  positions = variables['params']['stem']['positions']
  assert (positions.shape[0], begun['stem']['positions'].shape[0]) == (8, 4)
  np.testing.assert_allclose(begun['stem']['positions'], models.resized_positions(positions, 4, 4), atol=1e-6)
  assert_equal(begun['stage2'], variables['params']['stage2'])


def test_the_network_is_that_of_the_weights_where_it_is_open(image_folder, tmp_path):
  settings = {'name': 'vit_tiny', 'blocks': (1,), 'width': 1 / 12, 'patch': 8, 'positions': 'learned'}
  network = models.build_encoder(ConfigDict(settings), jnp.float32)
  variables = jax.jit(network.init)(jax.random.key(3), np.zeros((1, 32, 32, 3), np.float32))
  safetensors.numpy.save_file(vits.to_timm(network, variables), tmp_path / 'start.safetensors')
  config = load('configs/conic.py:folder')
  config.data.dir, config.encoder.weights = str(image_folder), str(tmp_path / 'start.safetensors')
  found, choices, _ = warm_start.open_start(config)
  assert (found.encoder.name, found.encoder.patch, found.encoder.positions) == ('vit_tiny', 8, 'learned')
  assert recipe.UNUSED not in {choice.reason for choice in choices}
