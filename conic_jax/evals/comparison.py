"""The pretrained network against baselines: the table at the end of a run, and a warning."""
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from conic_jax.errors import UserError
from conic_jax.evals import encoders
from conic_jax.evals.features import FrozenEncoder, pixels
from conic_jax.hardware.mesh import replicated
from conic_jax.views import evaluated

# Names of the rows in the summary; the pretrained network's figures are at its top level.
PIXELS, RANDOM, WEIGHTS = 'pixels', 'random_init', 'baseline_weights'
# Figure's name, title and format.
_COLUMNS = (('knn_top1', 'kNN (k = {k})', '.1%'), ('linear_top1', 'linear', '.1%'),
            ('probe_instance_top1', 'own other view', '.1%'), ('probe_rankme', 'RankMe', '.1f'))
_JUDGED = {'knn_top1': 'kNN accuracy', 'linear_top1': 'linear accuracy',
           'probe_instance_top1': 'share of images that find their own other view'}


def baselines(encoder: FrozenEncoder, random_variables: Callable[[], Any], config: Any, mesh: Mesh
              ) -> dict[str, FrozenEncoder]:
  """The baselines that `config.eval` asks for: encoders by row name.

  Args:
    encoder: the run's encoder.
    random_variables: returns randomly initialised variables for it.
    config: the run's config.
    mesh: the mesh.
  """
  found: dict[str, FrozenEncoder] = {}
  if config.eval.baselines:
    found |= {PIXELS: FrozenEncoder(pixels, {}),
              RANDOM: dataclasses.replace(encoder, variables=random_variables())}
  if config.eval.baseline_weights:
    found[WEIGHTS] = published(config, mesh)
  return found


def published(config: Any, mesh: Mesh) -> FrozenEncoder:
  """The encoder of `config.eval.baseline_weights`; its input is normalised as in `config.views`.

  Raises:
    UserError: if there are no such weights.
  """
  name = config.eval.baseline_weights
  if name == encoders.RANDOM:
    raise UserError('config.eval.baseline_weights is random: config.eval.baselines has the random '
                    'network; give a file of weights, or the folder of a run.')
  try:
    encoder = encoders.open_encoder(name, dtype=config.dtype)
  except UserError as error:
    raise UserError(f'config.eval.baseline_weights: {error}') from error
  given, wanted = evaluated(config.views), encoder.views
  if (given.mean, given.std) == (wanted.mean, wanted.std):
    return FrozenEncoder(encoder.encode, jax.device_put(encoder.variables, replicated(mesh)))

  def encode(variables: Any, images: jax.Array) -> jax.Array:
    planes = [(images[..., channel] * given.std[channel] + given.mean[channel] - wanted.mean[channel])
              / wanted.std[channel] for channel in range(3)]
    return encoder.encode(variables, jax.numpy.stack(planes, axis=-1))

  return FrozenEncoder(encode, jax.device_put(encoder.variables, replicated(mesh)))


def rows(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """The figures of each row by display name, the pretrained network's last."""
  named = {'raw pixels': summary.get(PIXELS), 'random network': summary.get(RANDOM)}
  if WEIGHTS in summary:
    named[Path(summary[WEIGHTS]['name']).name] = summary[WEIGHTS]
  return {name: figures for name, figures in named.items() if figures is not None} | {'pretrained': summary}


def table(summary: Mapping[str, Any], k: int) -> str:
  """The figures as a printable table, one column for each that was measured."""
  lines = rows(summary)
  columns = [(name, title.format(k=k), form) for name, title, form in _COLUMNS
             if any(name in figures for figures in lines.values())]
  first = max(16, *(len(name) + 2 for name in lines))
  text = [' ' * first + ''.join(f'{title:>{len(title) + 4}}' for _, title, _ in columns)]
  for row, figures in lines.items():
    cells = [f'{figures[name]:{form}}' if name in figures else '–' for name, _, form in columns]
    text.append(f'{row:{first}}' + ''.join(
      f'{cell:>{len(title) + 4}}' for cell, (_, title, _) in zip(cells, columns, strict=True)))
  return '\n' + '\n'.join(text) + '\n'


def warning(summary: Mapping[str, Any]) -> str | None:
  """A warning if the pretrained network is no better than a random one or raw pixels, else None.

  Compares accuracies if there are any, otherwise how often an image finds its own other view.
  """
  labelled = [name for name in ('knn_top1', 'linear_top1') if name in summary]
  parts = []
  for name in labelled or ['probe_instance_top1']:
    worse_than = [f'{what} {figures[name]:.1%}' for what, figures in (
      ('raw pixels have', summary.get(PIXELS, {})), ('the random network has', summary.get(RANDOM, {})))
      if name in figures and name in summary and summary[name] <= figures[name] < 1]
    if worse_than:
      parts.append(f'its {_JUDGED[name]} is {summary[name]:.1%}, and {" and ".join(worse_than)}')
  if not parts:
    return None
  return ('Warning: the pretrained network is no better than what nobody trained: ' + '; '.join(parts)
          + '. Train for more epochs, or change what the verdict on the run names (summary.json).')
