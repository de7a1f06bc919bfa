"""Evaluation of a run's encoder: kNN and linear accuracy compared with baselines, and pictures."""
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from conic_jax import visualise
from conic_jax.data import crops, decode
from conic_jax.data.sources import Source, Subset, open_source
from conic_jax.errors import Stopped, UserError
from conic_jax.evals import comparison
from conic_jax.evals.features import (
  Encode,
  Features,
  FrozenEncoder,
  NotFinite,
  check_finite,
  extract,
  pixels,
  to_host,
)
from conic_jax.evals.knn import knn_accuracy, neighbours
from conic_jax.evals.linear import LinearResult, LinearSettings, linear_accuracy
from conic_jax.evals.probe import Probe
from conic_jax.evals.probe import measure as measure_probe
from conic_jax.hardware.mesh import check_batch_size
from conic_jax.views import CentralView, evaluated, usual_resize
from conic_jax.visualise import Draw

Say = Callable[[str], None]

_QUERIES, _NEIGHBOURS, _THUMBNAIL = 6, 8, 96
_POINTS_OF_MAP = 2000
FEATURES = ('encoder', 'head')
# Most pixel values of all training images, 4 GiB, for a raw-pixel baseline at the start of a run.
_MOST_PIXELS = 2**30


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The outcome of an evaluation.

  Attributes:
    figures: JSON values by name.
    pictures: functions that draw the pictures, by file-name suffix.
  """
  figures: dict[str, Any]
  pictures: Mapping[str, Draw] = dataclasses.field(default_factory=dict)


def has_labels(train_source: Source, test_source: Source | None) -> bool:
  """Whether both sources have labels, so that accuracies can be measured."""
  return bool(test_source is not None and train_source.num_classes and test_source.num_classes)


def check(train_source: Source, test_source: Source | None, config: Any, mesh: Mesh) -> None:
  """Raises early, before a long training, the `UserError` that its evaluation would raise."""
  check_batch_size(config.eval.batch_size, mesh, 'config.eval.batch_size')
  if features_name(config) not in FEATURES:
    raise UserError(f"config.eval.features is '{features_name(config)}'; available: {', '.join(FEATURES)}.")
  if config.eval.get('baseline_weights'):
    comparison.published(config, mesh)
  if test_source is None or not has_labels(train_source, test_source):
    return
  if train_source.class_names != test_source.class_names:
    alone = sorted(set(train_source.class_names) ^ set(test_source.class_names))
    raise UserError(f"The classes of config.data.train '{config.data.train}' and config.data.test "
                    f"'{config.data.test}' differ, in {', '.join(alone[:5])}: give both the same class "
                    'folders (an empty one counts), or set config.data.test to an empty name.')
  if 'linear' in config:
    linear_settings(config)


def labelled_sources(config: Any, mesh: Mesh) -> tuple[Source, Source]:
  """The training and test images of `config.data`, with the same classes.

  Raises:
    UserError: if they have no labels, or their classes differ.
  """
  train_source = open_source(config.data, config.data.train)
  test_source = open_source(config.data, config.data.test) if config.data.test else None
  if test_source is None or not has_labels(train_source, test_source):
    described = '; '.join(f"'{split}' has {text}" for split, source in (
      (config.data.train, train_source), (config.data.test, test_source))
      if (text := getattr(source, 'description', '')))
    raise UserError('The evaluation needs labelled images to train and to test on, such as two or more class '
                    'folders: set --config.data.train and --config.data.test (and data.name, data.dir)'
                    + (f' ({described}).' if described else '.'))
  check(train_source, test_source, config, mesh)
  return train_source, test_source


def resize_of(config: Any) -> int:
  """Short side of an evaluated image in pixels; 0 in the config means ImageNet's ratio, 256 for 224."""
  return config.eval.resize or usual_resize(config.views.size)


def view_of(config: Any) -> CentralView:
  """How an evaluated image becomes an input, by `config.views` and `config.eval`."""
  return CentralView(evaluated(config.views), resize_of(config))


def features_name(config: Any) -> str:
  """Which features kNN compares, 'encoder' or 'head'; 'encoder' if the config does not say."""
  return config.eval.get('features', 'encoder')


def linear_settings(config: Any) -> LinearSettings:
  """The settings of `config.linear`."""
  return LinearSettings(**config.linear)


def features_of(encode: Encode, variables: Any, source: Source, config: Any, mesh: Mesh) -> Features:
  """Features of a source's images, at the sizes of `config.views` and `config.eval`."""
  return extract(encode, variables, source, view=view_of(config), batch_size=config.eval.batch_size,
                 mesh=mesh)


def knn(encoder: FrozenEncoder, train_source: Source, test_source: Source, config: Any, mesh: Mesh
        ) -> dict[str, float]:
  """kNN accuracy of the test images, with the training images as neighbours.

  Returns:
    'knn_top1' for the first k of `config.eval.k`, and 'knn_top1_k<k>' for every k.

  Raises:
    NotFinite: if features are NaN or infinite.
  """
  encode = encoder.knn_encode or encoder.encode
  bank, queries = (features_of(encode, encoder.variables, source, config, mesh)
                   for source in (train_source, test_source))
  for features in (bank, queries):
    check_finite(features)
  accuracies = knn_accuracy(bank, queries, num_classes=train_source.num_classes,
                            ks=tuple(config.eval.k), mesh=mesh)
  return {'knn_top1': accuracies[config.eval.k[0]],
          **{f'knn_top1_k{k}': accuracy for k, accuracy in accuracies.items()}}


def online_knn(encoder: FrozenEncoder, train_source: Source, test_source: Source | None, config: Any,
               mesh: Mesh) -> dict[str, float]:
  """kNN accuracy during training; {} without labels, or if the features are not finite."""
  if test_source is None or not has_labels(train_source, test_source):
    return {}
  try:
    return knn(encoder, train_source, test_source, config, mesh)
  except NotFinite:  # Whether the training goes on is for its loss to say.
    return {}


def linear(encoder: FrozenEncoder, train_source: Source, test_source: Source, config: Any, mesh: Mesh,
           say: Say | None = None) -> Outcome:
  """Linear accuracy with `config.linear`.

  Args:
    encoder: the encoder.
    train_source, test_source: labelled images.
    config: the whole config.
    mesh: the mesh.
    say: prints the loss of every epoch and the scale of the features.

  Returns:
    'linear_top1', 'linear_top5' and figures that explain them; a picture of the confusion matrix.
  """
  report = None
  if say is not None:
    report = lambda figures: say('linear  ' + '  '.join(
      f'{name} {value:.4g}' for name, value in figures.items()))
  result = linear_accuracy(
    encoder, train_source, test_source, view=view_of(config), settings=linear_settings(config),
    seed=config.seed, mesh=mesh, report=report)
  if say is not None:
    say(f'The features have norm {result.feature_norm:.3g} and deviation {result.feature_std:.3g}: a '
        f'learning rate up to {result.stable_rate:.2g} is stable on them, whatever the classes; what a rate '
        'does goes with the square of the norm.')
  pictures = {}
  if result.confusion is not None and result.confusion.any():
    pictures['confusion'] = functools.partial(
      visualise.confusion_picture, result.confusion, test_source.class_names)
  return Outcome(_linear_figures(result), pictures)


def _linear_figures(result: LinearResult) -> dict[str, Any]:
  return {'linear_top1': result.top1, 'linear_top5': result.top5,
          'linear_learning_rate': result.learning_rate,
          'linear_by_learning_rate': {str(k): v for k, v in result.by_learning_rate.items()},
          'linear_held_out': {str(k): v for k, v in result.held_out.items()},
          'feature_norm': result.feature_norm, 'feature_std': result.feature_std,
          'linear_stable_rate': result.stable_rate}


def knn_baselines(random: FrozenEncoder, train_source: Source, test_source: Source | None, config: Any,
                  mesh: Mesh) -> dict[str, float]:
  """Baselines of the online kNN: 'knn_top1_random' and, if the pixels fit in memory, 'knn_top1_pixels'.

  Returns {} if there is no online kNN.
  """
  if not config.knn_every or test_source is None or not has_labels(train_source, test_source):
    return {}
  compared = {'random': random}
  images = jax.ShapeDtypeStruct((1, config.views.size, config.views.size, 3), np.float32)
  if train_source.num_images * jax.eval_shape(pixels, {}, images).size <= _MOST_PIXELS:
    compared['pixels'] = FrozenEncoder(pixels, {})
  return {f'knn_top1_{name}': knn(encoder, train_source, test_source, config, mesh)['knn_top1']
          for name, encoder in compared.items()}


def evaluate(encoder: FrozenEncoder, random_variables: Callable[[], Any], train_source: Source,
             test_source: Source | None, config: Any, mesh: Mesh, say: Say, probe: Probe) -> dict[str, Any]:
  """kNN and linear accuracy of an encoder and its baselines, as set in `config.eval`.

  Args:
    encoder: the encoder.
    random_variables: returns randomly initialised variables of the same network.
    train_source, test_source: images; without labels only the probe's measures are compared.
    config: the run's config.
    mesh: the mesh.
    say: prints a line.
    probe: the run's probe.

  Returns:
    The figures of `knn` and `linear`; with `config.eval.baselines` or `baseline_weights` also those of the
    probe, and the same for the baselines in 'random_init', 'pixels' and 'baseline_weights'.
  """
  asked = config.eval.knn or config.eval.linear
  labelled = asked and test_source is not None and has_labels(train_source, test_source)
  if asked and not labelled:
    say('No accuracies: they need labels in config.data.train and config.data.test.')
  others = comparison.baselines(encoder, random_variables, config, mesh)
  if not (labelled or others):
    return {}

  def measure(each):
    figures = {}
    if test_source is None or not labelled:
      return figures
    try:
      if config.eval.knn:
        figures |= knn(each, train_source, test_source, config, mesh)
      if config.eval.linear:
        figures |= linear(each, train_source, test_source, config, mesh).figures
    except NotFinite as error:
      say(str(error))
    return figures

  compared = {'pretrained': encoder, **others}
  found = {name: measure(each) for name, each in compared.items()}
  if others:
    for figures, probed in zip(found.values(), measure_probe(probe, list(compared.values())), strict=True):
      figures |= probed
  if comparison.WEIGHTS in found:
    found[comparison.WEIGHTS]['name'] = config.eval.baseline_weights
  summary = {**found.pop('pretrained'), **found}
  if any(found.values()) or labelled:
    say(comparison.table(summary, config.eval.k[0]))
  if warning := comparison.warning(summary):
    say(warning)
  return summary


def draw(encoder: FrozenEncoder, train_source: Source, test_source: Source | None, config: Any, mesh: Mesh,
         run: Path, say: Say) -> None:
  """Draws the pictures of a run into its figures/: curves, nearest neighbours, feature map.

  Shows the nearest training images of held-out images; if nothing is held out, of training images. A picture
  that cannot be drawn is told in a line, and the others are drawn. The first process draws, after all
  collective work.
  """
  of_features = {}
  try:
    of_features = _pictures_of_features(encoder, train_source, test_source, config, mesh)
  except Stopped:
    raise
  except Exception as error:
    say(f'Could not draw features.png and neighbours.png ({visualise.reason(error)}).')
  if jax.process_index():
    return
  pictures = {'curves': functools.partial(visualise.loss_curves, run / 'metrics.jsonl'), **of_features}
  files = {run / 'figures' / f'{name}.png': picture for name, picture in pictures.items()}
  drawn = [str(file) for file, picture in files.items() if visualise.attempt(picture, file, say)]
  if drawn:
    say('Pictures: ' + ', '.join(sorted(drawn)))


def _pictures_of_features(encoder: FrozenEncoder, train_source: Source, test_source: Source | None,
                          config: Any, mesh: Mesh) -> dict[str, Draw]:
  """What draws the map of the features and the nearest neighbours, by the picture's name."""
  shown_source = train_source if test_source is None else test_source
  order = np.random.default_rng(config.seed).permutation(shown_source.num_images)
  shown = Subset(shown_source, order[:_POINTS_OF_MAP])
  bank, queries = (features_of(encoder.encode, encoder.variables, source, config, mesh)
                   for source in (train_source, shown))
  similarities, found = neighbours(bank, queries, _NEIGHBOURS + 1, mesh)
  features, labels, places = to_host(queries)
  first = 1 if test_source is None else 0  # The nearest of the training images is the image itself.
  chosen, ranks = slice(0, _QUERIES), slice(first, first + _NEIGHBOURS)

  def draw_neighbours(out: Path) -> None:
    near = found[chosen, ranks]
    if not near.size:
      raise UserError('there are too few images to have neighbours')
    same = None
    if train_source.num_classes and shown.num_classes:
      same = np.stack([train_source.read(ids)[1] for ids in near]) == labels[chosen, None]
    visualise.neighbours_grid(
      thumbnails(shown, places[chosen]), np.stack([thumbnails(train_source, ids) for ids in near]),
      similarities[chosen, ranks], same, out)

  return {'features': functools.partial(
            visualise.feature_map, features, labels if shown.num_classes else None, shown.class_names,
            seed=config.seed),
          'neighbours': draw_neighbours}


def thumbnails(source: Source, ids: np.ndarray) -> np.ndarray:
  """The central squares of some images, uint8 [n, 96, 96, 3]; grey if one cannot be decoded."""
  def one(encoded):
    decoded = decode.decode(encoded, least_side=2 * _THUMBNAIL)
    if decoded is None:
      return np.full((_THUMBNAIL, _THUMBNAIL, 3), 128, np.uint8)
    top, left, side, _ = crops.central_boxes(np.array([decoded.shape[:2]]), _THUMBNAIL, 0)[0].tolist()
    return np.asarray(Image.fromarray(decoded).resize(
      (_THUMBNAIL, _THUMBNAIL), Image.Resampling.BICUBIC, (left, top, left + side, top + side)))
  return np.stack([one(encoded) for encoded in source.read(np.asarray(ids))[0]])
