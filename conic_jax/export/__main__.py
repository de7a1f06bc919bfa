"""The command that writes an encoder for another tool, with a model card beside it.

  python -m conic_jax.export runs/conic --to=torchvision --out=conic.safetensors

The encoder is that of a run, or of a file in .safetensors or of torch.save: a ResNet as torchvision, MoCo,
solo-learn, lightly, VISSL, DINO and others write it, a vision transformer or a ConvNeXt as timm, torchvision,
Transformers, MoCo v3 and DINO do.
--to is torchvision (ResNets), timm, transformers (a folder, ready for a hub), onnx (with PyTorch and
Transformers, pip install 'conic_jax[onnx]'), detectron2 (a pickle of a ResNet's arrays), safetensors
(torchvision's or timm's names for any of them, those with another stem or width included), flax (any encoder,
by its own names), or a module of yours such as mine.arrays. --upload=NAME/REPOSITORY hands a folder to the
Hugging Face hub, into a private repository where there is none, with the login of your machine.
"""
import types
from pathlib import Path

import jax.numpy as jnp

from conic_jax import command_line, models
from conic_jax.buckets.bucket import is_url
from conic_jax.buckets.outputs import output
from conic_jax.errors import UserError
from conic_jax.export import card, hub, read, targets
from conic_jax.export.families import image_size
from conic_jax.run.checkpoints import restore_encoder
from conic_jax.run.copies import fetched
from conic_jax.run.run_config import read_config
from conic_jax.terminal import print_line

_USAGE = f'python -m conic_jax.export RUN_OR_FILE --to={"|".join(targets.TARGETS)} --out=FILE'


def export(source: str | Path, target: str, out: str | Path) -> list[Path | str]:
  """Writes an encoder and its card.

  Args:
    source: folder of a run (its latest checkpoint is used), or a file that `read.load` reads; of this machine
      or in a bucket.
    target: one of targets.TARGETS, or a module with a TARGET.
    out: the file, or the folder; of this machine or in a bucket.

  Returns:
    Paths, or URLs, of the files written.

  Raises:
    UserError: if the source cannot be read, the target cannot express the encoder, or a name is taken.
  """
  with output(out, '--out', new=True) as written:
    return [written.name(path) for path in _export(fetched(source, 'RUN_OR_FILE'), target, written.path)]


def _export(source: Path, target: str, out: Path) -> list[Path]:
  targets.check_out(target, out)
  if source.is_file():
    encoder, variables = read.load(source)
    network = models.build_encoder(types.SimpleNamespace(**encoder), jnp.float32)
    origin = card.of_file(source, image_size(network, variables))
  else:
    config, variables = read_config(source), restore_encoder(source)
    network = models.build_encoder(types.SimpleNamespace(**config['encoder']), jnp.float32)
    origin = card.of_run(source, config)
  targets.check(target, network)
  return targets.write(target, network, variables, card.text(target, network, origin, out), out,
                       origin.preprocessing)


def command() -> None:
  """Runs the command and sets its exit code."""
  def action():
    parser = command_line.Parser(_USAGE, __doc__)
    parser.add_argument('source', metavar='RUN_OR_FILE', type=command_line.path_or_url('RUN_OR_FILE'),
                        help='folder of a run, whose newest checkpoint is taken, or a file of weights')
    parser.add_argument('--to', metavar='TARGET', required=True,
                        help=f'{", ".join(targets.TARGETS)}, or a module of yours')
    parser.add_argument('--out', metavar='FILE', type=command_line.path_or_url('--out'), required=True,
                        help='what to write: a folder for transformers, else a file')
    parser.add_argument('--upload', metavar='REPOSITORY',
                        help='NAME/REPOSITORY of the Hugging Face hub, which the folder goes to')
    arguments = parser.parse_args()
    if arguments.upload and targets.find(arguments.to).suffix:
      raise UserError(f'--upload takes a folder, and --to={arguments.to} writes a file: give '
                      '--to=transformers.')
    if arguments.upload and is_url(arguments.out):
      raise UserError('--upload takes a folder of this machine: give another --out.')
    print_line('\n'.join(map(str, export(arguments.source, arguments.to, arguments.out))))
    if arguments.upload:
      print_line(hub.upload(arguments.out, arguments.upload))
  command_line.guarded(action)


if __name__ == '__main__':
  command()
