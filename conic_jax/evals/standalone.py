"""Evaluations as tasks of their own: any protocol, of an encoder of a run, of a file, or of a random one."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from conic_jax import mesh as meshes
from conic_jax.data import sources
from conic_jax.data.sources import Source
from conic_jax.errors import UserError
from conic_jax.evals import encoders, finetune, protocols, segment, svm
from conic_jax.evals.encoders import Encoder
from conic_jax.metrics import write_json

Task = Callable[[Encoder, Any, Mesh, Path, protocols.Say], dict[str, Any]]


def evaluate(config: Any) -> dict[str, Any]:
  """Measures `config.encoder` by the protocol `config.task`, prints and writes the figures.

  Returns:
    The figures, which are written to `config.result` + '.json' in `config.run`, or in the encoder's run.

  Raises:
    UserError: where there is no such task or encoder, or the data does not suit it.
  """
  if config.task not in TASKS:
    raise UserError(f"config.task is '{config.task}'; there is: pretrain, {', '.join(TASKS)}.")
  if '://' in config.run:
    raise UserError('config.run is a folder of this machine or of a shared file system, not a bucket.')
  encoder = encoders.open_encoder(config.encoder, config.network, config.dtype, config.seed)
  config = complete(config, encoder)
  alone = f'runs/{config.result}-{Path(config.encoder).stem}'
  run = Path(config.run or (config.encoder if encoder.pretraining is not None else alone))
  mesh = meshes.make_mesh(config.mesh)
  first_process = jax.process_index() == 0
  say = (lambda line: print(line, flush=True)) if first_process else (lambda line: None)

  figures = TASKS[config.task](encoder, config, mesh, run, say)
  if first_process:
    run.mkdir(parents=True, exist_ok=True)
    written = run / f'{config.result}.json'
    write_json(written, figures)
    say('\n'.join(f'{name:24}{value}' for name, value in figures.items()))
    say(f'Written to {written}')
  return figures


def complete(config: Any, encoder: Encoder) -> Any:
  """The config with what it leaves open taken from the encoder's own run.

  Raises:
    UserError: where something stays open, as an encoder that is random or a file has no run.
  """
  config, pretraining = config.copy_and_resolve_references(), encoder.pretraining
  if pretraining is not None:
    if not config.data.name:
      for name in ('name', 'dir', 'train', 'test', 'cache'):
        config.data[name] = config.data[name] or pretraining.data[name]
    if 'views' in config:
      config.views = ConfigDict({**pretraining.views, 'size': config.views.size or pretraining.views.size})
    for part in ('eval', 'linear'):
      if part in config:
        given = {name: value for name, value in config[part].items() if value is not None}
        theirs = {name: value for name, value in pretraining[part].items() if name in config[part]}
        config[part] = ConfigDict({**theirs, **given})
  still_open = [name for name, value in _leaves(config) if value is None]
  if not config.data.name or still_open:
    raise UserError('An encoder that is random or a file has no run to take its data and settings from '
                    f'({", ".join(still_open) or "config.data.name"}): give a preset, such as '
                    f'--config=configs/{config.task}.py:photos.')
  return config


def _leaves(node: Any, prefix: str = 'config'):
  for name, value in node.items():
    if isinstance(value, ConfigDict):
      yield from _leaves(value, f'{prefix}.{name}')
    else:
      yield f'{prefix}.{name}', value


def _knn(encoder: Encoder, config: Any, mesh: Mesh, out: Path, say: protocols.Say) -> dict[str, Any]:
  train_source, test_source = labelled_sources(config, mesh)
  variables = jax.device_put(encoder.variables, meshes.replicated(mesh))
  return protocols.knn(encoder.encode, variables, train_source, test_source, config, mesh)


def _linear(encoder: Encoder, config: Any, mesh: Mesh, out: Path, say: protocols.Say) -> dict[str, Any]:
  train_source, test_source = labelled_sources(config, mesh)
  variables = jax.device_put(encoder.variables, meshes.replicated(mesh))
  return protocols.linear(encoder.encode, variables, train_source, test_source, config, mesh, out, say)


def _finetune(encoder: Encoder, config: Any, mesh: Mesh, out: Path, say: protocols.Say) -> dict[str, Any]:
  train_source, test_source = labelled_sources(config, mesh)
  return finetune.run(encoder, train_source, test_source, config, mesh, say)


def labelled_sources(config: Any, mesh: Mesh) -> tuple[Source, Source]:
  """The training and test images of `config.data`, with the same classes.

  Raises:
    UserError: where they have no labels, or other ones.
  """
  train_source = sources.open_source(config.data, config.data.train)
  test_source = sources.open_source(config.data, config.data.test) if config.data.test else None
  if test_source is None or not protocols.has_labels(train_source, test_source):
    raise UserError('The evaluation needs labelled images to train and to test on: set '
                    '--config.data.train and --config.data.test (and data.name, data.dir).')
  protocols.check(train_source, test_source, config, mesh)
  return train_source, test_source


TASKS: dict[str, Task] = {'knn': _knn, 'linear': _linear, 'finetune': _finetune, 'svm': svm.run,
                          'segment': segment.run}
