"""The tasks 'knn' and 'linear': an evaluation of an encoder that a run left, or of a random one."""
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from conic_jax import mesh as meshes
from conic_jax import models
from conic_jax.checkpoint import restore_model
from conic_jax.data import sources
from conic_jax.errors import UserError
from conic_jax.evals import protocols
from conic_jax.metrics import write_json


def evaluate(config: Any) -> dict[str, Any]:
  """Measures `config.encoder` by the protocol `config.task`, prints and writes the figures.

  Raises:
    UserError: where the encoder is no run, or the data has no labels.
  """
  if not config.encoder:
    raise UserError('Which encoder? --config.encoder=RUN, the folder of a pretraining run, or '
                    '--config.encoder=random.')
  random = config.encoder == 'random'
  run = Path(config.run or (f'runs/{config.task}-random' if random else config.encoder))
  config = complete(config) if random else inherit(config, read_config(Path(config.encoder)))
  mesh = meshes.make_mesh(config.mesh)
  meshes.check_batch_size(config.eval.batch_size, mesh)
  train_source = sources.open_source(config.data, config.data.train)
  test_source = sources.open_source(config.data, config.data.test) if config.data.test else None
  if test_source is None or not protocols.has_labels(train_source, test_source):
    raise UserError('The evaluation needs labelled images to train and to test on: set '
                    '--config.data.train and --config.data.test (and data.name, data.dir).')

  encoder = models.build_encoder(config.network, meshes.compute_dtype(config.dtype))
  if random:
    images = jnp.zeros((1, config.views.size, config.views.size, 3))
    variables = jax.jit(lambda: encoder.init(jax.random.key(config.seed), images))()
  else:
    model = restore_model(Path(config.encoder))
    variables = {name: part['encoder'] for name, part in model.items()}
  variables = jax.device_put(variables, meshes.replicated(mesh))

  def encode(variables: Any, images: jax.Array) -> Any:
    return encoder.apply(variables, images, mode='frozen')

  if config.task == 'knn':
    figures = protocols.knn(encode, variables, train_source, test_source, config, mesh)
  else:
    figures = protocols.linear(encode, variables, train_source, test_source, config, mesh,
                               say=print if jax.process_index() == 0 else None)
  if jax.process_index() == 0:
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / f'{config.task}.json', figures)
    print('\n'.join(f'{name:24}{value}' for name, value in figures.items()))
    print(f"Written to {run / config.task}.json")
  return figures


def read_config(run: Path) -> ConfigDict:
  """The config that a run was pretrained with.

  Raises:
    UserError: where the folder is no run.
  """
  path = run / 'config.json'
  if not path.is_file():
    raise UserError(f"'{run}' is no run: there is no {path}. Give the folder that config.run named "
                    'when the encoder was pretrained, or random.')
  config = json.loads(path.read_text())
  config['views'] = {name: tuple(value) if isinstance(value, list) else value
                     for name, value in config['views'].items()}
  return ConfigDict(config)


def inherit(config: Any, pretraining: Any) -> Any:
  """The config with what it leaves open taken from the encoder's own run."""
  config = config.copy_and_resolve_references()
  config.network = pretraining.encoder
  if not config.data.name:
    for name in ('name', 'dir', 'train', 'test', 'cache'):
      config.data[name] = config.data[name] or pretraining.data[name]
  size, resize = config.views.size, config.eval.resize
  config.views = pretraining.views
  with config.unlocked():
    config.views.size = size or pretraining.views.size
    config.eval.resize = resize or pretraining.eval.resize
  return config


def complete(config: Any) -> Any:
  """The config of a random encoder, whose preset must have said everything.

  Raises:
    UserError: where the data or the sizes are open.
  """
  config = config.copy_and_resolve_references()
  if not config.data.name or not config.views.size or config.eval.resize is None:
    raise UserError('A random encoder has no run to take its data and sizes from: give a preset, '
                    f'such as --config=configs/{config.task}.py:photos.')
  return config
