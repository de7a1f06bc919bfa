"""The encoder to evaluate: from a run, from a weights file, or randomly initialised."""
import dataclasses
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from conic_jax import models
from conic_jax.errors import UserError
from conic_jax.export import read
from conic_jax.export.families import image_size
from conic_jax.hardware import mesh as meshes
from conic_jax.run.checkpoints import restore_encoder, restore_model
from conic_jax.run.copies import fetched
from conic_jax.run.run_config import read_config
from conic_jax.views import Views, evaluated

RANDOM = 'random'


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
  """An encoder with its weights.

  Attributes:
    name: the name that the user gave.
    network: the module.
    variables: its {'params', 'batch_stats'}, numpy arrays.
    views: normalisation and size from pretraining; ImageNet's and 224 if unknown.
    encode: pure function (variables, images float32 [B, S, S, 3], normalised) -> features float32 [B, F],
      with frozen batch norm.
    pretraining: the config of its run, a ConfigDict; None for a file or a random encoder.
    settings: the settings from which `models.build_encoder` rebuilds the network.
  """
  name: str
  network: models.EncoderModule
  variables: dict[str, Any]
  views: Views
  encode: Callable[[Any, jax.Array], jax.Array]
  pretraining: Any
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def open_encoder(name: str, network: Any = None, dtype: str = 'auto', seed: int = 0) -> Encoder:
  """Opens an encoder by name.

  Args:
    name: the folder of a run (its latest checkpoint is used) or a file that `export.read.load` reads, of this
      machine or in a bucket, or 'random'.
    network: settings for `models.build_encoder`, for a random encoder.
    dtype: as config.dtype.
    seed: seed of a random encoder.

  Raises:
    UserError: if it is neither a run nor a weights file.
  """
  path = Path(name) if name == RANDOM else fetched(name, 'the encoder')
  if name != RANDOM and not (name and path.exists()):
    raise UserError(f"There is no encoder '{name}': it is the folder of a run, a file of weights, or random.")
  views, pretraining, variables = evaluated({}), None, None
  if name != RANDOM and path.is_file():
    settings, variables = read.load(path)
    network = types.SimpleNamespace(**settings)
  elif name != RANDOM:
    pretraining = pretraining_config(path)
    network, views = pretraining.encoder, evaluated(pretraining.views)
    variables = restore_encoder(path)
  module = models.build_encoder(network, meshes.compute_dtype(dtype))
  if pretraining is None and variables is not None:
    views = evaluated({'size': image_size(module, variables)})
  if variables is None:
    variables = random_variables(module, seed)

  def encode(variables: Any, images: jax.Array) -> Any:
    return module.apply(variables, images, mode='frozen')

  settings = {field: getattr(network, field, usual) for field, usual in models.ENCODER_FIELDS.items()}
  return Encoder(name, module, variables, views, encode, pretraining, settings)


def with_head(encoder: Encoder) -> Encoder:
  """A run's encoder followed by its projection head: `encode` gives the head's features [B, D].

  Raises:
    UserError: if the encoder is not from a run, or its method has no head.
  """
  model = {} if encoder.pretraining is None else restore_model(fetched(encoder.name, 'the encoder'))
  if 'head' not in model.get('params', {}):
    raise UserError(f"config.eval.features is 'head', and the encoder {encoder.name} has none: give the "
                    'folder of a run, or set config.eval.features to encoder.')
  variables = {collection: {part: parts[part] for part in ('encoder', 'head')}
               for collection, parts in model.items()}
  head = models.mlp_of(variables['params']['head'], encoder.network.dtype)

  def encode(variables: Any, images: jax.Array) -> Any:
    own, heads = ({name: parts[part] for name, parts in variables.items()} for part in ('encoder', 'head'))
    return head.apply(heads, encoder.encode(own, images), mode='frozen')

  return dataclasses.replace(encoder, variables=variables, encode=encode)


def random_variables(network: models.EncoderModule, seed: int) -> dict[str, Any]:
  """Randomly initialised variables {'params', 'batch_stats'} of a network, numpy arrays."""
  begin = jax.jit(lambda: network.init(jax.random.key(seed), jnp.zeros((1, 32, 32, 3))))
  return jax.tree.map(np.asarray, begin())


def trainable(encoder: Encoder) -> models.EncoderModule:
  """The encoder's module for training: float32 instead of float16, whose gradients need loss scaling."""
  float16 = encoder.network.dtype == jnp.float16
  return encoder.network.clone(dtype=jnp.float32) if float16 else encoder.network


def pretraining_config(run: Path) -> Any:
  """The config of a pretraining run, with its tuples restored.

  Raises:
    UserError: if the folder is not a run.
  """
  def thaw(value):
    if isinstance(value, dict):
      return {name: thaw(part) for name, part in value.items()}
    return tuple(value) if isinstance(value, list) else value
  return ConfigDict(thaw(read_config(run)))
