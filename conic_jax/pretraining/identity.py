"""A run's identity, as recorded by its checkpoints and its config.json."""
import json
import platform
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from conic_jax import __version__
from conic_jax.data.sampler import Sampler


def run_identity(config: Any, sampler: Sampler, dtype: jnp.dtype) -> dict[str, Any]:
  """What a resumed run must share with its checkpoint, besides the shapes."""
  # Blocks computed again give the same numbers.
  encoder = {name: value for name, value in json_value(config.encoder).items() if name != 'remat'}
  # The shapes show whether there is a bias: left out, so that runs older than the setting can resume.
  head = {name: value for name, value in json_value(config.head).items() if name != 'output_bias'}
  return {'method': config.method, 'num_images': sampler.num_images, 'config.seed': config.seed,
          'config.dtype': jnp.dtype(dtype).name,
          'config.optimizer.name': config.optimizer.name, 'config.batch_size': config.batch_size,
          'config.encoder': encoder,
          'config.head': head, 'config.data.name': config.data.name,
          'config.data.train': config.data.train,
          'config.sampler': json_value(config.sampler) if sampler.slides else None}


def changes(before: Any, now: Any, prefix: str = 'config') -> list[str]:
  """Phrases for the values that differ in two contents of config.json, without the recipe's reasons."""
  if isinstance(before, dict) and isinstance(now, dict):
    names = sorted((before.keys() | now.keys()) - ({'recipe', 'run'} if prefix == 'config' else set()))
    return [phrase for name in names for phrase in changes(
      before.get(name, 'absent'), now.get(name, 'absent'),
      name if name == 'versions' else f'{prefix}.{name}')]
  return [] if before == now else [f'{prefix} {_short(before)} → {_short(now)}']


def _short(value: Any) -> str:
  text = str(value)
  return text if len(text) <= 40 else f'{text[:37]}…'


def json_value(node: Any) -> Any:
  """A config node as a JSON value."""
  return json.loads(node.to_json_best_effort())


def describe(config: Any) -> dict[str, Any]:
  """The resolved config with the versions that it runs with, for config.json."""
  versions = {'conic_jax': __version__, 'jax': jax.__version__, 'optax': optax.__version__,
              'numpy': np.__version__, 'python': platform.python_version(),
              'device': jax.devices()[0].device_kind}
  return {**json_value(config), 'versions': versions}
