"""Training that starts from the weights of an encoder, of a file or of another run."""
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from conic_jax import models, recipe
from conic_jax.errors import UserError
from conic_jax.evals import encoders
from conic_jax.evals.encoders import Encoder
from conic_jax.hardware.mesh import replicated
from conic_jax.memories.momentum_encoder import MomentumEncoder
from conic_jax.methods import Method
from conic_jax.recipe import Choice
from conic_jax.run.state import TrainState
from conic_jax.views import evaluated

_PLACE = 'config.encoder.weights'
# What the shapes of the weights depend on.
_OF_PATCHES = {'patch', 'positions', 'frozen_patches'}
_NETWORK = ('name', 'blocks', 'stem', 'width', *sorted(_OF_PATCHES))


def open_start(config: Any) -> tuple[Any, list[Choice], Encoder | None]:
  """Opens `config.encoder.weights`, and takes the network from it as far as the config leaves it open.

  Returns:
    The config, these choices, and the encoder; None without weights.

  Raises:
    UserError: if there are no such weights, or they are of another network than the config's.
  """
  name = config.encoder.get('weights', '')
  if not name:
    return config, [], None
  if name == encoders.RANDOM:
    raise UserError(f"{_PLACE} is random, as training starts without it: leave it empty.")
  try:
    start = encoders.open_encoder(name)
  except UserError as error:
    raise UserError(f'{_PLACE}: {error}') from error
  open_fields = [field for field in _NETWORK if recipe.is_open(config, f'encoder.{field}')]
  played = set(_NETWORK) - (_OF_PATCHES if isinstance(start.network, models.ResNet) else set())
  choices = [Choice(f'encoder.{field}', start.settings[field],
                    'the network of the weights it starts from' if field in played else recipe.UNUSED)
             for field in open_fields]
  return recipe.apply(config, choices), choices, start


def fitted(start: Encoder, shapes: TrainState) -> Encoder:
  """The encoder with the learned positions of a vision transformer resized for the images to train on."""
  stem, wanted = (part.get('stem', {}) for part in (start.variables['params'], shapes.params['encoder']))
  known = stem.keys() & wanted.keys()
  if not isinstance(start.network, models.VisionTransformer) or 'positions' not in known:
    return start
  height, width, _ = wanted['positions'].shape
  positions = np.asarray(models.resized_positions(jnp.asarray(stem['positions']), height, width))
  params = {**start.variables['params'], 'stem': {**stem, 'positions': positions}}
  return dataclasses.replace(start, variables={**start.variables, 'params': params})


def check(start: Encoder, shapes: TrainState, config: Any) -> None:
  """Checks that weights are of the network to train, and were learnt from images normalised as here.

  Args:
    start: the encoder of the weights.
    shapes: of the state to train.
    config: the run's config.

  Raises:
    UserError: saying what differs, and what to set.
  """
  wanted = {'params': shapes.params['encoder'], 'batch_stats': shapes.batch_stats['encoder']}
  if any(_shapes(part) != _shapes(start.variables.get(name, {})) for name, part in wanted.items()):
    differing = {field: start.settings[field] for field in _NETWORK
                 if start.settings[field] != config.encoder[field]}
    told = ', '.join(f'{field} {config.encoder[field]} is {value} there'
                     for field, value in differing.items()) or 'another module'
    flags = ' '.join(f'--config.encoder.{field}={value}' for field, value in differing.items())
    raise UserError(f'{_PLACE} {start.name} is of another network than config.encoder: {told}. '
                    f'Give {flags or "weights of this one"}.')
  here, there = evaluated(config.views), start.views
  if (here.mean, here.std) != (there.mean, there.std):
    raise UserError(f'{_PLACE} {start.name} was trained on images normalised otherwise: give '
                    f'--config.views.mean="{there.mean}" --config.views.std="{there.std}".')


def begin_from(start: Encoder, state: TrainState, method: Method, mesh: Mesh) -> TrainState:
  """The initial state with this encoder in place of the random one, in momentum encoders too."""
  encoder = jax.device_put(start.variables, replicated(mesh))

  def replaced(network: dict[str, Any]) -> dict[str, Any]:
    return {collection: {**parts, 'encoder': encoder.get(collection, {})}
            for collection, parts in network.items()}

  memories = {name: replaced(state.memories[name]) if isinstance(memory, MomentumEncoder)
              else state.memories[name] for name, memory in method.memories.items()}
  return state.replace(memories=memories, **replaced({'params': state.params,
                                                      'batch_stats': state.batch_stats}))


def compared(config: Any) -> Any:
  """The config with the start among the baselines of the table at the end, if it is to have any."""
  if not config.eval.baselines or config.eval.baseline_weights:
    return config
  return recipe.apply(config, [Choice('eval.baseline_weights', config.encoder.weights, '')])


def told(start: Encoder) -> str:
  """A line about the weights."""
  leaves = jax.tree.leaves(start.variables)
  return (f'The encoder starts from {start.name}: {len(leaves)} arrays of a {start.settings["name"]}, '
          f'{sum(leaf.size for leaf in leaves):,} numbers; the head is random.')


def _shapes(variables: Any) -> Any:
  return jax.tree.map(lambda leaf: tuple(leaf.shape), dict(variables))
