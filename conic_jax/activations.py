"""The picture of where the activation of one encoder or of two lies, as ConIC's Figure 1.

  python -m conic_jax.activations runs/conic runs/classification --images=FOLDER --out=maps.png

The paper's other encoder is trained by the classification loss alone (--config.alpha=0). An encoder is a run,
a file of weights, or 'random': then it has the network of the other one. The images are drawn evenly from the
folder, which may have subfolders. A map is scaled by itself: it tells where an encoder looks, not how much.
The picture is written over an older one of its name.
"""
import argparse
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from conic_jax import command_line, visualise
from conic_jax.buckets.outputs import output
from conic_jax.data import augment, pipeline, sources
from conic_jax.errors import UserError
from conic_jax.evals.encoders import RANDOM, Encoder, open_encoder, random_variables
from conic_jax.models import EncoderModule, stage_names
from conic_jax.terminal import print_line, printable
from conic_jax.views import Views

_USAGE = ('python -m conic_jax.activations ENCODER [ENCODER] --images=FOLDER [--count=6] [--size=224] '
          '[--out=maps.png]')
_MOST_IMAGES = 50


def scaled(response: jax.Array, size: int) -> jax.Array:
  """The channel mean of a map, resized bilinearly and scaled to 0 … 1 within each image.

  The paper does not say how its figure was made. After a ReLU the mean is, up to scale, the sum of absolute
  values of Zagoruyko and Komodakis (Paying More Attention to Attention, 2017, §3.1).

  Args:
    response: output of a stage, [n, h, w, C].
    size: side of the image in pixels.

  Returns:
    float32 [n, size, size]; zeros if the mean is constant over the image.
  """
  means = jnp.mean(response, axis=3, dtype=jnp.float32)
  means = jax.image.resize(means, (len(means), size, size), 'bilinear')
  means = means - jnp.min(means, axis=(1, 2), keepdims=True)
  return means / jnp.maximum(jnp.max(means, axis=(1, 2), keepdims=True), jnp.finfo(jnp.float32).tiny)


def activation_maps(encoder: Encoder, images: np.ndarray) -> np.ndarray:
  """Maps of the encoder's last stage for images, uint8 [n, S, S, 3] to float32 [n, S, S]."""
  return np.asarray(_maps(encoder.network, encoder.variables, images, encoder.views))


def read_images(folder: str, count: int, size: int) -> tuple[np.ndarray, str | None]:
  """The central squares of images drawn evenly from a folder.

  Args:
    folder: image folder, with or without subfolders.
    count: maximum number of images.
    size: side in pixels.

  Returns:
    uint8 [n, size, size, 3], and a sentence naming the undecodable images, if any.

  Raises:
    UserError: if no image can be decoded.
  """
  try:
    every = sources.open_path(folder)
  except UserError as error:
    raise UserError(f'--images={folder}: there are no images below this folder.') from error
  count = min(count, every.num_images)
  source = sources.Subset(every, np.linspace(0, every.num_images - 1, count).round().astype(int))
  batch = next(pipeline.eval_batches(source, size=size, resize=0, batch_size=count, rows=np.arange(count)))
  undecodable = pipeline.UndecodableImages(source)
  undecodable.add(batch)
  if not batch['valid'].any():
    names = ', '.join(undecodable.names())
    raise UserError(f'--images={folder}: none of the images can be decoded: {names}.')
  return batch['views'][0][batch['valid'], 0], undecodable.report()


def open_encoders(names: list[str]) -> list[Encoder]:
  """Opens the encoders; a random one takes the network and normalisation of the other.

  Raises:
    UserError: if one cannot be opened, or all are random.
  """
  opened = {name: open_encoder(name) for name in names if name != RANDOM}
  if not opened:
    raise UserError("The encoder 'random' has the network of another one: give a run or a file of weights "
                    'too.')
  other = next(iter(opened.values()))
  return [opened.get(name) or dataclasses.replace(
    other, name=RANDOM, variables=random_variables(other.network, seed=0)) for name in names]


@functools.partial(jax.jit, static_argnums=(0, 3))
def _maps(network: EncoderModule, variables: Any, images: jax.Array, views: Views) -> jax.Array:
  maps: Any = network.apply(variables, augment.normalise(images, views), mode='frozen', stages=True)
  if not (stages := stage_names(maps)):
    raise UserError(f'The encoder, a {type(network).__name__}, has no maps to show: it returns no stages.')
  return scaled(maps[stages[-1]], images.shape[1])


# ---- The command --------------------------------------------------------------------------------


def run(names: list[str], folder: str, count: int, size: int, out: str | Path,
        say: Callable[[str], None]) -> None:
  """Draws the encoders' maps over images from the folder.

  Raises:
    UserError: if an encoder, an image or an argument is invalid.
  """
  if Path(out).suffix != '.png':
    raise UserError(f'--out={out}: the picture is a PNG; give it a name that ends in .png.')
  if len(names) > 2 or not 1 <= count <= _MOST_IMAGES or size < 1:
    raise UserError(f'One encoder or two, --count from 1 to {_MOST_IMAGES}, --size of at least 1; usage: '
                    f'{_USAGE}.')
  encoders = open_encoders(names)
  images, left_out = read_images(folder, count, size)
  if left_out:
    say(printable(left_out))
  titles = [Path(name).name for name in names]
  titles = titles if len(set(titles)) == len(set(names)) else names
  maps = [(title, activation_maps(encoder, images)) for title, encoder in zip(titles, encoders, strict=True)]
  with output(out, '--out') as written:
    visualise.insist(functools.partial(visualise.activations_picture, images, maps), written.path, '--out')
  say(f'{out}: {" and ".join(titles)} over {len(images)} images')


def _arguments() -> argparse.Namespace:
  parser = command_line.Parser(_USAGE, __doc__)
  parser.add_argument('encoders', metavar='ENCODER', nargs='+',
                      help='folder of a run, a file of weights, or random; one or two')
  parser.add_argument('--images', metavar='FOLDER', required=True, help='folder of images')
  parser.add_argument('--count', metavar='N', type=int, default=6,
                      help='images to show, 50 at most (default: %(default)s)')
  parser.add_argument('--size', metavar='PIXELS', type=int, default=224,
                      help='side of the square that an encoder sees (default: %(default)s)')
  parser.add_argument('--out', metavar='FILE', type=command_line.path_or_url('--out'),
                      default=Path('maps.png'), help='the picture, a PNG (default: %(default)s)')
  return parser.parse_args()


def command() -> None:
  """Runs the command and sets its exit code."""
  def action():
    arguments = _arguments()
    run(arguments.encoders, arguments.images, arguments.count, arguments.size, arguments.out, print_line)
  command_line.guarded(action)


if __name__ == '__main__':
  command()
