"""What programs and notebooks use: pretrain on a folder, open a run or an encoder, encode images.

  import conic_jax
  run = conic_jax.pretrain('/my/images', method='conic', minutes=30)
  features = run.encoder()(images)
"""
import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from conic_jax import command_line, config_files, fields, models
from conic_jax.data import kinds, pipeline, sources
from conic_jax.data.given_images import GivenImages
from conic_jax.data.sources import Source
from conic_jax.errors import UserError
from conic_jax.evals import embeddings, encoders, standalone
from conic_jax.evals.embeddings import Embeddings
from conic_jax.explore.__main__ import explore
from conic_jax.export.__main__ import export
from conic_jax.hardware import mesh as meshes
from conic_jax.pretraining import training
from conic_jax.report.read_run import read_reports
from conic_jax.run.copies import fetched
from conic_jax.run.json_file import read_json
from conic_jax.run.run_config import read_config
from conic_jax.terminal import print_line

Pool = Literal['mean', 'max', 'none']


def pretrain(data: str | Path, /, method: str = 'conic', *, out: str | Path | None = None,
             **settings: Any) -> 'Run':
  """Pretrains an encoder on a folder of images; what is not set is chosen from the images and the machine.

  Called again with the same arguments, it goes on from the last checkpoint, or returns the finished run.

  Args:
    data: a folder of images, or a preset of the method's config that names its own, such as 'photos'.
    method: a config of the library ('conic', 'simclr', 'moco_v2', …), or the path of one of yours.
    out: folder of the run; by default runs/NAME, as the folder of images is named.
    **settings: fields of the config: epochs=10, views={'size': 96}, or a short name as on the command line,
      size=96.

  Returns:
    The run.

  Raises:
    UserError: for anything that the user can fix.
    Stopped: after Ctrl-C, once everything is saved.
  """
  path, given = config_files.with_images(method, str(data))
  config: Any = command_line.load(path)
  if run := out or config_files.run_of(str(data)):
    given['run'] = str(run)
  command_line.set_fields(config, given | fields.full_names(settings))
  training.pretrain(config)
  return Run(config.run)


def load(encoder: 'str | Path | Run', **settings: Any) -> 'Encoder':
  """Opens an encoder.

  Args:
    encoder: the folder of a run, or a file of weights (.safetensors, or a ResNet of PyTorch), of this machine
      or in a bucket; a `Run`; or 'random'.
    **settings: of a random one its network, such as name='resnet50'.

  Raises:
    UserError: if there is no such encoder.

  >>> encoder = conic_jax.load('random', name='resnet18', width=0.25)
  >>> encoder(np.zeros((2, 100, 80, 3), np.uint8)).shape
  (2, 128)
  """
  name = encoder.name if isinstance(encoder, Run) else str(encoder)
  network = None
  if name == encoders.RANDOM:
    network = types.SimpleNamespace(**_network(settings))
  elif settings:
    raise UserError(f'{name} has its own network: leave out {", ".join(settings)}.')
  return Encoder(encoders.open_encoder(name, network))


def _network(settings: Mapping[str, Any]) -> dict[str, Any]:
  """The settings of a random encoder's network: those given, else the paper's."""
  if unknown := sorted(settings.keys() - set(models.ENCODER_FIELDS)):
    raise UserError(f"A network has no {', '.join(unknown)}; it has {', '.join(models.ENCODER_FIELDS)}.")
  config: Any = command_line.load('conic')
  return {**config.encoder.to_dict(), **settings}


class Encoder:
  """An encoder with its weights. Call it on images, or let it embed a folder.

  Attributes:
    name: what it was opened by.
    num_features: numbers in a vector.
    size: side in pixels of what it sees of an image: the centre crop of the image scaled to `resize`.
    resize: the short side of the scaled image, in pixels.
    layers: what `layer` may be: 'features', and the maps 'stem', 'stage1', …
    variables: {'params', 'batch_stats'}, numpy arrays.
    encode: pure function (variables, float32 [B, S, S, 3], normalised) -> features, for your own programs.
  """

  def __init__(self, opened: encoders.Encoder):
    self._opened, self._mesh = opened, meshes.make_mesh()
    self.name, self.variables, self.encode = opened.name, opened.variables, opened.encode
    self.size, self.resize = embeddings.sizes(opened)
    image = jax.ShapeDtypeStruct((1, self.size, self.size, 3), jnp.float32)
    maps = jax.eval_shape(lambda variables, image: opened.network.apply(
      variables, image, mode='frozen', stages=True), opened.variables, image)
    self.layers: tuple[str, ...] = tuple(maps) if isinstance(maps, Mapping) else ('features',)
    self.num_features = opened.network.num_features
    self._of_layers: dict[tuple[str, str], encoders.Encoder] = {}

  def __repr__(self) -> str:
    return f'Encoder({self.name!r}, {self.num_features} features of {self.size}×{self.size} pixels)'

  def __call__(self, images: Any, *, layer: str = 'features', pool: Pool = 'mean') -> np.ndarray:
    """Encodes images of any sizes: scaled and cut as in the encoder's own evaluation.

    Args:
      images: one image or several: an array [H, W, 3] or [B, H, W, 3] of uint8, or of floats from 0 to 1, of
        NumPy or JAX; an image of Pillow; a path; or a list of these.
      layer: one of `layers`.
      pool: of a map its 'mean' or 'max', or 'none' for the whole map.

    Returns:
      float32 [B, F], or [B, h, w, C] of a whole map; without the first axis for one image.

    Raises:
      UserError: if an image cannot be read, or there is no such layer.
    """
    each, alone = _each(images)
    source = GivenImages(each)
    if not source.num_images:
      raise UserError('No images are given.')
    found, undecodable = self._embed(source, '.', layer, pool)
    if missing := undecodable.names():
      raise UserError(f'{missing[0]} cannot be read as an image.')
    return found.vectors[0] if alone else found.vectors

  def embed(self, folder: str | Path, *, layer: str = 'features', pool: Pool = 'mean') -> Embeddings:
    """Encodes every image below a folder that can be decoded.

    Args:
      folder: the folder.
      layer: one of `layers`.
      pool: as for a call.

    Returns:
      `ids`, `paths` relative to the folder, and `vectors` as of a call.

    Raises:
      UserError: if there are no images.
    """
    source = sources.open_path(str(folder))
    root = kinds.folder_of(str(Path(folder).expanduser()))
    found, undecodable = self._embed(source, root, layer, pool)
    if left_out := undecodable.report():
      print_line(left_out)
    return found

  def nearest(self, image: Any, embedded: Embeddings, k: int = 8) -> list[tuple[str, float]]:
    """The k images of `embed` most similar to an image: their paths and cosine similarities, best first."""
    paths, similarities = embeddings.nearest(self(image), [embedded], k)
    return list(zip(paths, similarities.tolist(), strict=True))

  def export(self, target: str, out: str | Path) -> list[Path | str]:
    """Writes the encoder for another tool, with a model card; returns the files.

    Args:
      target: 'safetensors', 'flax', 'torchvision', 'timm', 'transformers', 'onnx', 'detectron2', or a module
        of yours.
      out: the file, or the folder; of this machine or in a bucket.

    Raises:
      UserError: if the target cannot express it, or the name is taken.
    """
    return export(self.name, target, out)

  def _embed(self, source: Source, root: str, layer: str, pool: Pool
             ) -> tuple[Embeddings, pipeline.UndecodableImages]:
    undecodable = pipeline.UndecodableImages(source)
    blocks = embeddings.embed(
      self._of_layer(layer, pool), source, root, size=self.size, resize=self.resize,
      batch_size=embeddings.IMAGES_OF_DEVICE * self._mesh.size, mesh=self._mesh, undecodable=undecodable)
    return embeddings.joined(list(blocks)), undecodable

  def _of_layer(self, layer: str, pool: Pool) -> encoders.Encoder:
    """The encoder whose features are those of a layer; the same object every time, as it is compiled once."""
    if layer not in self.layers or pool not in get_args(Pool):
      raise UserError(f"There is no layer '{layer}' with pool '{pool}': layers are {', '.join(self.layers)}; "
                      'pool is mean, max or none.')
    if layer == 'features':
      return self._opened
    if (layer, pool) not in self._of_layers:
      encode = functools.partial(_layer, network=self._opened.network, layer=layer, pool=pool)
      self._of_layers[layer, pool] = dataclasses.replace(self._opened, encode=encode)
    return self._of_layers[layer, pool]


def _each(images: Any) -> tuple[list[Any], bool]:
  """The images, and whether there is one alone."""
  if isinstance(images, (list, tuple)):
    return list(images), False
  if isinstance(images, (str, Path, PIL.Image.Image)):
    return [images], True
  array = np.asarray(images)
  return ([array], True) if array.ndim < 4 else (list(array), False)


def _layer(variables: Any, images: jax.Array, *, network: Any, layer: str, pool: Pool) -> jax.Array:
  found = network.apply(variables, images, mode='frozen', stages=True)[layer].astype(jnp.float32)
  pools: dict[str, Callable] = {'mean': jnp.mean, 'max': jnp.max}
  return pools[pool](found, axis=(1, 2)) if pool in pools else found


@dataclasses.dataclass(init=False)
class Run:
  """The folder of a run.

  Attributes:
    name: the folder, a path of this machine or a URL in a bucket.
    folder: the folder; for one in a bucket a copy of what can be read of it here.
  """
  name: str
  folder: Path

  def __init__(self, folder: str | Path):
    self.name = str(folder)
    self.folder = fetched(folder)
    read_config(self.folder)

  @property
  def config(self) -> Any:
    """The settings that it was trained with, a ConfigDict."""
    return encoders.pretraining_config(self.folder)

  @property
  def summary(self) -> dict[str, Any]:
    """The figures at its end; {} if it has not ended."""
    return read_json(self.folder / 'summary.json') or {}

  @property
  def metrics(self) -> Any:
    """What it reported, a row a report: a DataFrame where pandas is installed, else a list of dicts."""
    reports = read_reports(self.folder / 'metrics.jsonl')
    try:
      import pandas
    except ImportError:
      return reports
    return pandas.DataFrame(reports)

  @property
  def figures(self) -> dict[str, Path]:
    """Its pictures, PNG files, by name."""
    return {path.stem: path for path in sorted((self.folder / 'figures').glob('*.png'))}

  def encoder(self) -> Encoder:
    """The encoder at its newest checkpoint."""
    return load(self)

  def evaluate(self, protocol: str, data: str | Path | None = None, /, **settings: Any) -> dict[str, Any]:
    """Measures the encoder.

    Args:
      protocol: 'knn', 'linear', 'semi', 'finetune', 'svm' or 'segment', or the path of a config.
      data: a folder of images or a preset, as for `pretrain`; None for the run's own.
      **settings: fields of the protocol's config.

    Returns:
      The figures.

    Raises:
      UserError: for anything that the user can fix.
    """
    path, given = (protocol, {}) if data is None else config_files.with_images(protocol, str(data))
    config = command_line.load(path)
    own = {'encoder': self.name}
    command_line.set_fields(config, own | given | fields.full_names(settings))
    return standalone.evaluate(config)

  def export(self, target: str, out: str | Path) -> list[Path | str]:
    """Writes the encoder for another tool; see `Encoder.export`."""
    return export(self.name, target, out)

  def explore(self, images: str | Path | None = None, out: str | Path | None = None, **settings: Any
              ) -> Path | str:
    """Writes a page to look at its images, or those of a folder, by what its encoder thinks of them.

    Args:
      images: a folder, or a file that `embed` wrote; None for the run's own.
      out: the folder to write; explore/ in the run's by default.
      **settings: `points`, `clusters`, `table` and `seed`, as of the command.

    Returns:
      The page, to open in a browser.
    """
    return explore(self.name, str(images) if images else None, out, **settings)

  def report(self, out: str | Path | None = None) -> Path | str:
    """Writes its page, by default report.html in its folder; returns the file."""
    from conic_jax.report.__main__ import report  # Its Matplotlib takes a second.
    return report(self.name, out)
