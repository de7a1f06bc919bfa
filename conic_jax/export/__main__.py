"""The command that writes an encoder for another tool, with a model card beside it.

  python -m conic_jax.export runs/conic --to=torchvision --out=conic.safetensors

The encoder is that of a run, or of a file: ResNets in .safetensors or of torch.save, MoCo's checkpoints.
--to is torchvision, transformers (a folder), detectron2 (a pickle of arrays), or safetensors: torchvision's
names for any encoder, those with another stem or width included.
"""
import argparse
import sys
import types
from pathlib import Path
from typing import NoReturn

import jax.numpy as jnp

from conic_jax import models
from conic_jax.checkpoint import read_config, restore_model
from conic_jax.errors import UserError
from conic_jax.export import card, read, targets

_USAGE = f'usage: python -m conic_jax.export RUN_OR_FILE --to={"|".join(targets.SUFFIXES)} --out=FILE'


class _Parser(argparse.ArgumentParser):
  """Answers a mistake with one sentence, as the other commands do."""

  def error(self, message: str) -> NoReturn:
    raise UserError(f'{message}; {_USAGE}.')


def export(source: Path, target: str, out: Path) -> list[Path]:
  """Writes an encoder and its card.

  Args:
    source: folder of a pretraining, whose last checkpoint is taken, or a file that `read.load` takes.
    target: one of targets.SUFFIXES.
    out: the file, or the folder for Transformers.

  Returns:
    What was written.

  Raises:
    UserError: where the source cannot be read, the target cannot express the encoder, or a name is taken.
  """
  if source.is_file():
    encoder, variables = read.load(source)
    origin = card.of_file(source)
  else:
    config = read_config(source)
    encoder, origin = config['encoder'], card.of_run(source, config)
    variables = {name: part['encoder'] for name, part in restore_model(source).items()}
  network = models.build_encoder(types.SimpleNamespace(**encoder), jnp.float32)
  targets.check(target, network)
  targets.check_out(target, out)
  return targets.write(target, network, variables, card.text(target, network, origin, out), out)


def command() -> None:
  """The whole command, with its exit code: 0, 1 for a user's error, 130 when interrupted."""
  parser = _Parser(usage=_USAGE.removeprefix('usage: '), description=__doc__, allow_abbrev=False,
                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('source', metavar='RUN_OR_FILE', type=Path)
  parser.add_argument('--to', choices=list(targets.SUFFIXES), required=True)
  parser.add_argument('--out', type=Path, required=True)
  try:
    arguments = parser.parse_args()
    print('\n'.join(map(str, export(arguments.source, arguments.to, arguments.out))))
  except UserError as error:
    sys.exit(f'conic_jax: {error}')
  except KeyboardInterrupt:
    sys.exit(130)


if __name__ == '__main__':
  command()
