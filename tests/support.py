"""What several tests use."""
import contextlib
import json
import re
import shutil
import socket
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from conic_jax.command_line import load
from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.hardware import topologies
from conic_jax.views import Views

_SMALL_QUEUE = {'queue.size': 37, 'batch_norm.groups': 2}
# What methods need to fit the tiny network, batches of 16 and some forty images.
_TINY = {
  'conic_s': {'classifier.window': 24}, 'pic': {'classifier.window': 24}, 'one_million': {'smoothing.k': 5},
  'instdisc': {'views.count': 1, 'loss.noise': 12}, 'byol': {'views.count': 1, 'predictor.hidden': 16},
  'moco': _SMALL_QUEUE, 'co2': _SMALL_QUEUE, 'align_uniform': _SMALL_QUEUE,
  'inscon': {**_SMALL_QUEUE, 'head.norm': False, 'cell.hidden': 16, 'cell.features': 8, 'cell.queue': 150}}

# Of the views: what methods have in their own way and the tiny config does not shrink.
_OF_METHODS = ('overlap', 'brightness', 'contrast', 'saturation', 'hue')


def config_of(name):
  """The file of a method's config; of several the first."""
  return f'configs/{ {"moco": "moco_v2", "co2": "co2_moco_v2"}.get(name, name)}.py:imagenet100'


def as_method(config, name, **changes):
  """Makes a config of ConIC one of another method, in its own settings but for these changes."""
  own = load(config_of(name))
  with config.unlocked():
    _take_fields(config, own)
  for field in _OF_METHODS:
    config.views[field] = own.views[field]
  config.method = name
  config.update_from_flattened_dict(changes)
  return config


def tiny_method(config, name, **changes):
  """Makes the tiny config of ConIC one of another method, as small."""
  return as_method(config, name, **{**_TINY.get(name, {}), **changes})


def _take_fields(config, own):
  """Gives a config the fields of another, with its values where they are new."""
  for field in set(config) - set(own):
    del config[field]
  for field, value in own.items():
    if field not in config:
      config[field] = value
    elif isinstance(value, ConfigDict):
      _take_fields(config[field], value)


def views_of(**changes):
  """ConIC's views but for these changes."""
  return Views(**{**load('configs/conic.py').views, **changes})


def flags_of(config):
  """The command-line flags that make the preset imagenet100 of its method into this config."""
  file = config_of(config.method)
  base = dict(_leaves(load(file)))
  return [f'--config={file}',
          *(f'--config.{path}={value}' for path, value in _leaves(config) if base[path] != value)]


def _leaves(node, prefix=''):
  for name, value in node.items():
    if isinstance(value, ConfigDict):
      yield from _leaves(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value


def reports_of(run):
  """What a run reported, line by line."""
  return [json.loads(line) for line in (Path(run) / 'metrics.jsonl').read_text().splitlines()]


def losses_by_step(run):
  """The loss of each step that a run reported."""
  return {report['step']: report['loss'] for report in reports_of(run) if 'loss' in report}


def lose_what_followed(run, step):
  """Makes a run one that ended after its checkpoint of a step: later checkpoints and reports are gone."""
  for path in (Path(run) / 'checkpoints').iterdir():
    if int(path.name) > step:
      shutil.rmtree(path)
  kept = [report for report in reports_of(run) if report['step'] <= step]
  (Path(run) / 'metrics.jsonl').write_text(''.join(json.dumps(report) + '\n' for report in kept))


def noise_batch(method, mesh, step, ids, valid):
  """A batch of noise of a step, as the method's views take it."""
  rng = np.random.default_rng(step)
  size, count = len(ids), sum(group.count for group in method.views)
  views = tuple(rng.integers(0, 256, (size, group.count, group.size, group.size, 3), np.uint8)
                for group in method.views)
  batch = {'views': views, 'id': ids.astype(np.int32), 'valid': valid,
           'crop': np.tile(np.float32([0, 0, 1, 1]), (size, count, 1)),
           'flip': rng.random((size, count)) < 0.5}
  return meshes.to_global(batch, mesh)


@contextlib.contextmanager
def reserved_port():
  """A port for a coordinator that nobody else is given meanwhile: gRPC binds with SO_REUSEPORT too."""
  with socket.socket() as held:
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(('127.0.0.1', 0))
    yield held.getsockname()[1]


def collective_sizes(text):
  """Elements of the result of every collective of a compiled program."""
  kinds = r'(?:all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\('
  sizes = []
  for line in text.splitlines():
    if match := re.search(rf'= (.*?) {kinds}', line):
      shapes = re.findall(r'\w+\[([\d,]*)\]', match.group(1))
      sizes += [int(np.prod([int(n) for n in shape.split(',') if n])) for shape in shapes]
  return sizes


def refuses(function, *shapes):
  """Holds that chex refuses float32 arrays of these shapes as the function is traced."""
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  with pytest.raises(AssertionError, match='Chex'):
    jax.eval_shape(function, *arrays)


def devices_or_skip(name):
  """The devices of a topology, if its compiler is installed."""
  found = topologies.parse(name)
  if found.platform != 'cpu':
    try:
      topologies.check_compiler(found)
    except UserError as error:
      pytest.skip(str(error))
    topologies.prepare(found)
  return topologies.devices(found)


def write_images(root):
  """Writes train/ and test/ with two class folders of 16×16 PNGs: stripes and checks of random colour."""
  rng = np.random.default_rng(0)
  rows, columns = np.mgrid[:16, :16]
  patterns = {'checks': (rows // 4 + columns // 4) % 2, 'stripes': rows // 2 % 2}
  for split, count in (('train', 24), ('test', 8)):
    for name, pattern in patterns.items():
      folder = root / split / name
      folder.mkdir(parents=True)
      for index in range(count):
        colours = rng.integers(0, 256, (2, 3), np.uint8)
        noise = rng.integers(-20, 20, (16, 16, 3))
        image = np.clip(colours[pattern] + noise, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f'{index:02d}.png')
  return root


def tiny(images, run):
  """ConIC on `write_images` with a network of one block: 3 steps an epoch, 2 epochs."""
  config = load('configs/conic.py:imagenet100')
  config.run = str(run)
  config.data.dir, config.data.train, config.data.test = str(images), 'train', 'test'
  config.batch_size, config.epochs, config.log_every = 16, 2, 1
  config.views.size = config.eval.resize = 16
  config.encoder.name, config.encoder.stem = 'resnet18', 'cifar'
  config.encoder.blocks, config.encoder.width = (1,), 0.125
  config.head.hidden, config.head.features = 16, 8
  config.probe.images, config.probe.times = 0, 2
  config.knn_every, config.eval.batch_size, config.eval.k = 0, 16, (3, 5)
  config.eval.baselines = config.figures = False
  config.linear.learning_rates, config.linear.epochs, config.linear.batch_size = (0.1,), 1, 16
  return config
