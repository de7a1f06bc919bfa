"""The command that writes the features of a folder of images, and finds the nearest of a given image.

  python -m conic_jax.embed runs/conic photos --out=features.parquet
  python -m conic_jax.embed runs/conic photos --neighbours=cat.jpg -k 5 --sheet=nearest.png
  python -m conic_jax.embed runs/conic features.parquet --neighbours=cat.jpg

The encoder is that of a run, or of a file: a ResNet in .safetensors or of torch.save, as torchvision, MoCo,
solo-learn, lightly, VISSL, DINO and others write it. The images are a folder, or what --out wrote of one: a
table, .parquet, with the columns id, path and vector, or arrays, .npz, with the names ids, paths and
vectors. Paths are from the folder, and ids are their order; an image that cannot be decoded is left out.
Encoded is the centre crop of --size pixels of the image with a short side of --resize, by default as in the
run's own evaluations, or those of the file; else 224 of 256.
A file is searched with the encoder that its features are of.
"""
import argparse
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from conic_jax import command_line, visualise
from conic_jax.buckets.bucket import is_url
from conic_jax.buckets.outputs import output
from conic_jax.data import files, folder, kinds, pipeline, sources
from conic_jax.data.given_images import GivenImages
from conic_jax.errors import UserError
from conic_jax.evals import embeddings, encoders, protocols
from conic_jax.evals.embeddings import Embeddings
from conic_jax.hardware import mesh as meshes
from conic_jax.run.copies import fetched
from conic_jax.terminal import file_name, print_line

_USAGE = (f'python -m conic_jax.embed RUN_OR_FILE FOLDER [--out=FILE{"|".join(embeddings.SUFFIXES)}] '
          '[--neighbours=IMAGE [-k N] [--sheet=FILE.png]] [--size=N] [--resize=N] [--batch_size=N]')
_MOST_ON_SHEET = 100

Embed = Callable[..., Iterator[Embeddings]]


def run(arguments: argparse.Namespace) -> None:
  """Runs the command with these arguments.

  Args:
    arguments: from `_arguments`.

  Raises:
    UserError: if they are invalid, an input is missing, or an output already exists.
  """
  _check(arguments)
  encoder, mesh = encoders.open_encoder(arguments.encoder), meshes.make_mesh()
  of_features = embeddings.is_file(arguments.images) or (
    is_url(arguments.images) and arguments.images.endswith(embeddings.SUFFIXES))
  written = fetched(arguments.images, 'FOLDER') if of_features else Path(arguments.images)
  metadata, blocks = embeddings.read(written) if of_features else ({}, None)
  weights = embeddings.fingerprint(encoder)
  if metadata.get('fingerprint', weights) != weights:
    raise UserError(f'The features in {written} are of other weights than those of {encoder.name}: name the '
                    f'encoder that they are of ({metadata.get("encoder", "not known")}).')
  size, resize = _sizes(arguments, metadata, encoder)
  # With a file of embeddings, only the query image is encoded.
  usual = arguments.batch_size or embeddings.IMAGES_OF_DEVICE * mesh.size
  batch_size = usual if blocks is None else mesh.size
  meshes.check_batch_size(batch_size, mesh, '--batch_size')
  embed = functools.partial(embeddings.embed, encoder, size=size, resize=resize, batch_size=batch_size,
                            mesh=mesh)
  query = _vector(embed, arguments.neighbours) if arguments.neighbours else None
  if blocks is None:
    metadata = {'encoder': encoder.name, 'fingerprint': weights, 'images': kinds.folder_of(arguments.images),
                'size': str(size), 'resize': str(resize),
                'mean': ' '.join(map(str, encoder.views.mean)), 'std': ' '.join(map(str, encoder.views.std))}
    blocks = _of_folder(embed, arguments.images, batch_size)
  with contextlib.ExitStack() as outputs:
    if arguments.out:
      out = outputs.enter_context(output(arguments.out, '--out', new=True)).path
      count = embeddings.write(blocks, metadata, out)
      print_line(f'{count} vectors written to {arguments.out}')
      _, blocks = embeddings.read(out)
    if query is not None:
      _show_nearest(arguments, metadata.get('images', ''), *embeddings.nearest(query, blocks, arguments.k))


def _show_nearest(arguments: argparse.Namespace, root: str, paths: list[str], similarities: np.ndarray
                  ) -> None:
  for path, similarity in zip(paths, similarities, strict=True):
    print_line(f'{similarity:7.4f}  {path}')
  if arguments.sheet:
    with output(arguments.sheet, '--sheet', new=True) as sheet:
      _draw(arguments.neighbours, root, paths, similarities, sheet.path)
    print_line(f'Picture: {arguments.sheet}')


def _check(arguments):
  """Raises any `UserError` that needs no computation."""
  out, sheet = (path and Path(path) for path in (arguments.out, arguments.sheet))
  if not (out or arguments.neighbours):
    raise UserError('Nothing to do: --out=FILE writes the features, --neighbours=IMAGE finds the nearest.')
  if arguments.encoder == encoders.RANDOM:
    raise UserError('RUN_OR_FILE is the folder of a run or a file of weights: no random encoder here.')
  if out and embeddings.is_file(arguments.images):
    raise UserError(f'{arguments.images} is a file: --out writes the features of a folder of images.')
  if out and out.suffix not in embeddings.SUFFIXES:
    raise UserError(f"--out={out}: its name must end in {' or '.join(embeddings.SUFFIXES)}.")
  if sheet and (sheet.suffix != '.png' or not arguments.neighbours):
    raise UserError(f'--sheet={sheet}: it is a picture, .png, of what --neighbours=IMAGE finds.')
  if sheet and arguments.k > _MOST_ON_SHEET:
    raise UserError(f'-k {arguments.k}: a sheet shows at most {_MOST_ON_SHEET} images.')
  for path in (out, sheet):
    if path and path.exists():
      raise UserError(f'{path} is there already: delete it or give another name.')


def _sizes(arguments, metadata, encoder):
  size = arguments.size or int(metadata.get('size', encoder.views.size))
  resize = arguments.resize or int(metadata.get('resize', embeddings.sizes(encoder, size)[1]))
  if size > resize:
    raise UserError(f'--size={size} is larger than --resize={resize}, the short side of the image that the '
                    'crop is of.')
  return size, resize


def _vector(embed: Embed, image: str) -> np.ndarray:
  source = GivenImages([image])
  for block in embed(source, '.', undecodable=pipeline.UndecodableImages(source)):
    if len(block.ids):
      return block.vectors[0]
  raise UserError(f'--neighbours={image}: there is no such image, or it cannot be decoded.')


def _of_folder(embed: Embed, images: str, batch_size: int) -> Iterator[Embeddings]:
  """Embeds a folder; shows progress and, at the end, the images left out."""
  try:
    source = sources.open_path(images)
  except UserError as error:
    if kinds.kind_of(images) != 'folder':
      raise
    reason = str(error).partition(': set config')[0]
    if 'cannot be listed' in reason and (files.is_remote(images) or os.path.exists(images)):
      raise UserError(f'{reason}.') from None
    raise UserError(f"There are no images below '{images}' (a folder with files that end in "
                    f"{' '.join(folder.EXTENSIONS)}), nor is it a file that --out wrote.") from None
  undecodable = pipeline.UndecodableImages(source)
  yield from tqdm(embed(source, kinds.folder_of(images), undecodable=undecodable),
                  total=-(-source.num_images // batch_size), unit='batch', disable=None)
  if report := undecodable.report():
    print_line(report)


def _draw(query: str, root: str, paths: list[str], similarities: np.ndarray, out: Path) -> None:
  named = [os.path.join(os.path.expanduser(root), path) for path in paths]
  found = GivenImages([path if os.path.exists(path) else file_name(path) for path in named])
  places = np.arange(len(paths))
  if not any(found.read(places)[0]):
    raise UserError(f"The images are not in '{root}' any more, where --sheet looks for them: give the folder "
                    'in place of the file.')
  visualise.insist(
    functools.partial(visualise.neighbours_grid, protocols.thumbnails(GivenImages([query]), np.arange(1)),
                      protocols.thumbnails(found, places)[None], similarities[None], None), out, '--sheet')


def _arguments() -> argparse.Namespace:
  parser = command_line.Parser(_USAGE, __doc__)
  parser.add_argument('encoder', metavar='RUN_OR_FILE', help='folder of a run, or a file of weights')
  parser.add_argument('images', metavar='FOLDER', help='folder, tar or list of images, or what --out wrote')
  parser.add_argument('--out', metavar='FILE', type=command_line.path_or_url('--out'),
                      help='where to write the features, .parquet or .npz')
  parser.add_argument('--neighbours', metavar='IMAGE', help='find the images nearest to this one')
  parser.add_argument('-k', metavar='N', type=command_line.whole_number, default=8,
                      help='how many of them (default: %(default)s)')
  parser.add_argument('--sheet', metavar='FILE', type=command_line.path_or_url('--sheet'),
                      help='a picture of them, a PNG')
  for name, meaning in (('--size', 'side of the crop in pixels'), ('--resize', 'short side before the crop'),
                        ('--batch_size', 'images encoded at a time')):
    parser.add_argument(name, metavar='N', type=command_line.whole_number, help=meaning)
  return parser.parse_args()


def command() -> None:
  """Runs the command and sets its exit code."""
  command_line.guarded(lambda: run(_arguments()))


if __name__ == '__main__':
  command()
