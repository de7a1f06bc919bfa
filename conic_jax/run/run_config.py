"""A run's config.json, whichever version of the library wrote it."""
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conic_jax import __version__
from conic_jax.errors import UserError
from conic_jax.terminal import print_line

# What fields that older versions did not write meant, where evaluations, exports and pages read them.
_BEFORE: dict[str, dict[str, Any]] = {
  'encoder': {'blocks': [], 'stem': 'imagenet', 'width': 1.0, 'zero_gamma': False, 'output_stride': 32,
              'patch': 0, 'positions': 'sincos', 'frozen_patches': False, 'remat': False,
              'weights': ''},
  'views': {'size': 224},
  'data': {'name': '', 'dir': '', 'train': '', 'test': '', 'cache': ''}}
_ENCODER = {'name', *_BEFORE['encoder']}


def read_config(run: Path) -> dict[str, Any]:
  """A run's config.json, with the fields that its version did not have.

  Raises:
    UserError: if the folder is not a run, or its config.json is damaged.
  """
  path = run / 'config.json'
  try:
    config = json.loads(path.read_text()) if path.is_file() else {}
  except ValueError as error:
    raise UserError(f'{path} cannot be read ({error}): bring it back, or pretrain anew in another '
                    'folder.') from error
  if not isinstance(config, dict) or not all(isinstance(config.get(name), kind) for name, kind in (
      ('method', str), ('encoder', dict), ('views', dict))) or not (run / 'checkpoints').is_dir():
    raise UserError(f"'{run}' is no run: it has no config.json of a pretraining, or no checkpoints/. "
                    'Give the folder that config.run named when the encoder was pretrained, or random.')
  if not isinstance(config['encoder'].get('name'), str):
    raise UserError(f'{path} does not name its encoder: bring back encoder.name, such as "resnet50".')
  for group, fields in _BEFORE.items():
    if not isinstance(config.setdefault(group, {}), dict):
      raise UserError(f'{path} is damaged: {group} must be an object. Bring it back from a copy.')
    config[group] = fields | config[group]
  return config


def say_unknown(run: Path, config: Mapping[str, Any]) -> None:
  """Names the settings of a run's encoder that this version does not know: its features may be others."""
  encoder = config['encoder']
  unknown = sorted(encoder.keys() - _ENCODER)
  if unknown and '.' not in encoder['name']:  # A module of the user's may have settings of its own.
    named = ', '.join(f'encoder.{name} = {encoder[name]!r}' for name in unknown)
    versions = config.get('versions')
    version = versions.get('conic_jax') if isinstance(versions, dict) else None
    theirs = f'conic_jax {version}' if version else 'another version'
    print_line(f'{run} was trained by {theirs}, whose setting{"s" if len(unknown) > 1 else ""} '
               f'{named} this one ({__version__}) does not know: its features may differ. Use that version '
               'to be sure.', sys.stderr)
