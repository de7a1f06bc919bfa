"""The probe: label-free measures on random training views of a few training images, taken during a run.

Uses two views of each image, and four of a quarter of the images for LiDAR, whose classes are the images.
Images and views depend only on the run's seed, so all probes of a run, including those of the random network
and of raw pixels, see the same views.
"""
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from threadpoolctl import threadpool_limits

from conic_jax import measures
from conic_jax.data import pipeline
from conic_jax.data.augment import augment, view_keys
from conic_jax.data.sources import Source, Subset
from conic_jax.errors import UserError
from conic_jax.evals.features import Features, FrozenEncoder, pixels, to_host
from conic_jax.hardware.mesh import batch_sharding, process_rows, to_global
from conic_jax.permutation import shuffled
from conic_jax.views import Views

# Views of most images; views of the images used for LiDAR, a quarter of all.
_PAIR, _SEVERAL, _QUARTER = 2, 4, 4
# Epoch numbers that seed the choice of images and the views. Training uses none of them.
_CHOICE = 2**32 - 4
_EPOCHS = {_PAIR: 2**32 - 5, _SEVERAL: 2**32 - 6}
# The first probe, as a share of the run.
_EARLY = 0.02
# Most views that all probes of a run may encode, as a share of its training views; but always at least
# `_FEWEST` images, below which the measures say little.
_COST, _FEWEST = 0.05, 256
# Bytes of views that a process keeps between probes instead of decoding them again.
_MOST_KEPT = 2**28


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
  """What is probed, and when.

  Attributes:
    source: the chosen images; empty if the probe is off.
    views: how views are drawn: the method's first group.
    seed: seed of the run.
    steps: the steps after which the encoder is probed.
    views_at_once: M, views encoded together over all devices.
    mesh: the mesh.
    kept: cached batches by views per image, if they are small enough.
  """
  source: Source
  views: Views
  seed: int
  steps: frozenset[int]
  views_at_once: int
  mesh: Mesh
  kept: dict[int, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)


def make(views: Views, source: Source, config: Any, last_step: int, mesh: Mesh) -> Probe:
  """Makes the probe of a run from `config.probe`.

  Args:
    views: the method's first group of views.
    source: the training images.
    config: the whole config.
    last_step: steps of the run.
    mesh: the mesh.

  Raises:
    UserError: if the number of images is negative or that of probes is below 1.
  """
  if config.probe.images < 0 or config.probe.times < 1:
    raise UserError(f'config.probe is of {config.probe.images} images {config.probe.times} times: the images '
                    'are at least 0, which turns it off, and the times at least 1.')
  trained = last_step * config.batch_size * views.count
  count = num_images(config.probe, source.num_images, trained)
  chosen = shuffled(np.arange(count), source.num_images, config.seed, _CHOICE)
  unit = _SEVERAL * mesh.size
  at_once = min(config.batch_size * views.count, count * (_PAIR + 1))
  return Probe(Subset(source, chosen), dataclasses.replace(views, overlap=0.0), config.seed,
               steps(last_step, config.probe.times) if count else frozenset(),
               max(1, at_once // unit) * unit, mesh)


def num_images(settings: Any, available: int, trained: int) -> int:
  """Number of images to probe.

  Args:
    settings: has 'images', the maximum, and 'times', probes per run.
    available: images in the training set.
    trained: views that the run trains on.

  Returns:
    At most `images`; fewer, down to 256, if the probes would encode more than 5% of the training views.
  """
  views_each = _PAIR + (_SEVERAL - _PAIR) / _QUARTER
  affordable = int(_COST * trained / (settings.times * views_each))
  return min(settings.images, available, max(_FEWEST, affordable))


def steps(last_step: int, times: int) -> frozenset[int]:
  """The steps after which a run is probed: at 2%, then evenly until its end.

  Args:
    last_step: steps of the run.
    times: number of probes, at least 1; fewer if the run has fewer steps.

  >>> sorted(steps(1000, 5))
  [20, 250, 500, 750, 1000]
  """
  if times == 1:
    return frozenset((last_step,))
  even = (round(last_step * index / (times - 1)) for index in range(1, times))
  return frozenset(max(1, step) for step in (round(_EARLY * last_step), *even))


def measure(probe: Probe, encoders: Sequence[FrozenEncoder]) -> list[dict[str, float]]:
  """Measures several encoders on the same views, which are read once.

  Args:
    probe: the probe.
    encoders: the encoders.

  Returns:
    For each encoder, 'probe_rankme', 'probe_lidar', 'probe_instance_top1' and 'probe_std'; nothing if the
    probe is off.
  """
  count = probe.source.num_images
  if not count:
    return [{} for _ in encoders]
  quarter = -(-count // _QUARTER)
  several = _features(probe, np.arange(quarter), _SEVERAL, encoders)
  pairs = [four[:, :_PAIR] for four in several]
  if quarter < count:
    others = _features(probe, np.arange(quarter, count), _PAIR, encoders)
    pairs = [np.concatenate(both) for both in zip(pairs, others, strict=True)]
  return [_figures(*views) for views in zip(pairs, several, strict=True)]


def baselines(probe: Probe, random: FrozenEncoder) -> dict[str, float]:
  """The measures of the randomly initialised network, '…_random', and of raw pixels, '…_pixels'."""
  found = measure(probe, [random, FrozenEncoder(pixels, {})])
  return {f'{name}_{suffix}': value for suffix, figures in zip(('random', 'pixels'), found)
          for name, value in figures.items()}


def loss_share(chance: tuple[str, float] | None, figures: Mapping[str, Any]) -> dict[str, float]:
  """'loss_share': the instance-discrimination loss divided by its chance value; near 1 at first.

  Args:
    chance: `Method.chance`.
    figures: training metrics by name.

  Returns:
    {} if the method has no such loss.
  """
  if chance is None or chance[0] not in figures or not chance[1] > 0:
    return {}
  return {'loss_share': figures[chance[0]] / chance[1]}


def _figures(pairs: np.ndarray, several: np.ndarray) -> dict[str, float]:
  """The measures from two views of all images, [n, 2, F], and several views of some, [m, V, F]."""
  # On a busy machine multi-threaded eigenvalues are many times slower: the threads wait for each other.
  with threadpool_limits(1, user_api='blas'):
    return {'probe_rankme': measures.rankme(pairs[:, 0]), 'probe_lidar': measures.lidar(several),
            'probe_instance_top1': measures.retrieval(pairs[:, 0], pairs[:, 1]),
            'probe_std': measures.spread(pairs[:, 0])}


def _features(probe: Probe, positions: np.ndarray, count: int, encoders: Sequence[FrozenEncoder]
              ) -> list[np.ndarray]:
  """Features of some images by each encoder, float32 [n, count, F], without undecodable images."""
  group = dataclasses.replace(probe.views, count=count)
  found = [[] for _ in encoders]
  for batch in _batches(probe, positions, group):
    images, labels, ids, valid = _augment(
      to_global(_by_pairs(batch), probe.mesh), jnp.uint32(_EPOCHS[count]),
      group=dataclasses.replace(group, count=_PAIR), seed=probe.seed, mesh=probe.mesh)
    for encoder, parts in zip(encoders, found, strict=True):
      features = _encode(encoder.variables, images, encode=encoder.encode, mesh=probe.mesh)
      parts.append(to_host(Features(features, labels, ids, valid))[0])
  return [np.concatenate(parts).reshape(-1, count, parts[0].shape[1]) for parts in found]


def _batches(probe: Probe, positions: np.ndarray, group: Views) -> Iterable[dict[str, Any]]:
  """The views of some images, read once and cached if they are small enough."""
  if group.count in probe.kept:
    return probe.kept[group.count]
  images_at_once = probe.views_at_once // group.count
  rows = process_rows(probe.mesh, images_at_once)
  batches = pipeline.whole_pass_batches(
    Subset(probe.source, positions), (group,), batch_size=images_at_once, seed=probe.seed,
    epoch=_EPOCHS[group.count], start_step=0, rows=rows)
  held = -(-len(positions) // images_at_once) * len(rows) * group.count * group.size ** 2 * 3
  if held > _MOST_KEPT // len(_EPOCHS):
    return batches
  return probe.kept.setdefault(group.count, list(batches))


def _by_pairs(batch: dict[str, Any]) -> dict[str, Any]:
  """The batch with each image once for every two of its views: one program serves pairs and several views."""
  views, flip = batch['views'][0], batch['flip']
  pairs = views.shape[1] // _PAIR
  return {'views': views.reshape(-1, _PAIR, *views.shape[2:]), 'flip': flip.reshape(-1, _PAIR),
          'first_view': np.tile(np.arange(pairs, dtype=np.int32) * _PAIR, len(views)),
          **{name: np.repeat(batch[name], pairs) for name in ('id', 'label', 'valid')}}


@functools.partial(jax.jit, static_argnames=('group', 'seed', 'mesh'))
def _augment(batch, epoch, *, group, seed, mesh):
  """All views of a batch, [M, S, S, 3], image-major, with the labels, ids and validity of their images."""
  keys = jax.vmap(lambda id, first: view_keys(seed, epoch, id[None], group.count, first)[0])(
    batch['id'], batch['first_view'])
  images = augment(batch['views'], batch['flip'], keys, group)
  images = images.reshape(-1, *images.shape[2:])
  repeated = (jnp.repeat(batch[name], group.count) for name in ('label', 'id', 'valid'))
  return jax.lax.with_sharding_constraint((images, *repeated), batch_sharding(mesh))


@functools.partial(jax.jit, static_argnames=('encode', 'mesh'))
def _encode(variables, images, *, encode, mesh):
  features = encode(variables, images).astype(jnp.float32)
  return jax.lax.with_sharding_constraint(features, batch_sharding(mesh))
