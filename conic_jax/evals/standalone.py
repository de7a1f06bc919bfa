"""The tasks 'knn' and 'linear': an evaluation of an encoder of a run, of a file, or of a random one."""
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from conic_jax import mesh as meshes
from conic_jax import models
from conic_jax.checkpoint import read_config, restore_model
from conic_jax.data import sources
from conic_jax.errors import UserError
from conic_jax.evals import protocols
from conic_jax.export import read
from conic_jax.metrics import write_json


def evaluate(config: Any) -> dict[str, Any]:
  """Measures `config.encoder` by the protocol `config.task`, prints and writes the figures.

  Raises:
    UserError: where the encoder is no run and no file of weights, or the data has no labels.
  """
  if not config.encoder:
    raise UserError('Which encoder? --config.encoder=RUN, the folder of a pretraining run, or a file of '
                    'weights, or --config.encoder=random.')
  if '://' in config.run:
    raise UserError('config.run is a folder of this machine or of a shared file system, not a bucket.')
  random = config.encoder == 'random'
  file = not random and Path(config.encoder).is_file()
  if random or file:
    run = Path(config.run or f'runs/{config.task}-{Path(config.encoder).stem}')
    config = complete(config)
  else:
    run = Path(config.run or config.encoder)
    config = inherit(config, pretraining_config(Path(config.encoder)))
  if file:
    network, variables = read.load(Path(config.encoder))
    config.network = ConfigDict(network)
  mesh = meshes.make_mesh(config.mesh)
  train_source = sources.open_source(config.data, config.data.train)
  test_source = sources.open_source(config.data, config.data.test) if config.data.test else None
  if test_source is None or not protocols.has_labels(train_source, test_source):
    raise UserError('The evaluation needs labelled images to train and to test on: set '
                    '--config.data.train and --config.data.test (and data.name, data.dir).')

  protocols.check(train_source, test_source, config, mesh)

  encoder = models.build_encoder(config.network, meshes.compute_dtype(config.dtype))
  if random:
    images = jnp.zeros((1, config.views.size, config.views.size, 3))
    variables = jax.jit(lambda: encoder.init(jax.random.key(config.seed), images))()
  elif not file:
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


def pretraining_config(run: Path) -> ConfigDict:
  """The config that a run was pretrained with, its tuples tuples again."""
  def thaw(value):
    if isinstance(value, dict):
      return {name: thaw(part) for name, part in value.items()}
    return tuple(value) if isinstance(value, list) else value
  return ConfigDict(thaw(read_config(run)))


def inherit(config: Any, pretraining: Any) -> Any:
  """The config with what it leaves open taken from the encoder's own run."""
  config = config.copy_and_resolve_references()
  config.network = pretraining.encoder
  if not config.data.name:
    for name in ('name', 'dir', 'train', 'test', 'cache'):
      config.data[name] = config.data[name] or pretraining.data[name]
  config.views = pretraining.views if config.views.size is None else ConfigDict(
    {**pretraining.views, 'size': config.views.size})
  for part in ('eval', 'linear'):
    for name, value in config.get(part, {}).items():
      if value is None:
        config[part][name] = pretraining[part][name]
  return config


def complete(config: Any) -> Any:
  """The config of an encoder that has no run, whose preset must have said everything.

  Raises:
    UserError: where the data or the sizes are open.
  """
  config = config.copy_and_resolve_references()
  if not config.data.name or not config.views.size or config.eval.resize is None:
    raise UserError('An encoder that is random or a file has no run to take its data and sizes from: give a '
                    f'preset, such as --config=configs/{config.task}.py:photos.')
  return config
