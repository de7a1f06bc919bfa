"""Measures a network at random under the two batch norms of One-Million's pass before training.

  python -m experiments.one_million_features.measure --data=SETS --batch_norm=running --seed=0 --out=FILE

Every training image is seen once, as two views, in a shuffled order. Written are the mean cosine of two views
of an image less that of views of two images (`similarity_gap`), how often the nearest other image is of the
same class (`class_retrieval`), and how often one by chance is (`class_chance`). Features are the head's, that
become the rows of the classifier.
"""
import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from conic_jax import methods, optim
from conic_jax.command_line import guarded, load
from conic_jax.data import pipeline, sources
from conic_jax.data.augment import augment, view_keys
from conic_jax.hardware import mesh as meshes
from conic_jax.methods.network import merge_views
from conic_jax.methods.one_million import OneMillion
from conic_jax.pretraining import train_step
from experiments.jobs import Variant, settings_of
from experiments.scales import SCALES

_PASS_EPOCH = 2**32 - 2


def main() -> None:
  """Measures and writes."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--data', type=Path, required=True)
  parser.add_argument('--scale', choices=SCALES, default='cpu')
  parser.add_argument('--batch_norm', choices=('running', 'frozen'), required=True)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--out', type=Path, required=True)
  args = parser.parse_args()
  scale = SCALES[args.scale]
  config: Any = load(f'configs/one_million.py:{scale.preset}')
  config.update_from_flattened_dict({
    name: tuple(value) if isinstance(value, list) else value
    for name, value in settings_of(Variant('one_million'), scale, {}).items()})
  config.data.dir, config.seed = str(args.data / config.data.dir), args.seed
  source = sources.open_source(config.data, config.data.train)
  views = features(config, source, args.batch_norm)
  args.out.write_text(json.dumps(measures(views, source.labels())))


def features(config: Any, source: sources.Source, batch_norm: str) -> np.ndarray:
  """Unit features of two views of each image by a network at random, float32 [N, 2, D]."""
  mesh = meshes.make_mesh(devices=jax.devices()[:1])
  dtype = meshes.compute_dtype(config.dtype)
  method = methods.make(config, source.num_images, mesh, dtype)
  assert isinstance(method, OneMillion)
  state = train_step.init_state(method, optim.make_optimizer(config.optimizer), config.seed, dtype)
  group = dataclasses.replace(method.views[0], count=2)

  @jax.jit
  def project(batch_stats, batch):
    keys = view_keys(config.seed, _PASS_EPOCH, batch['id'], 2)
    views = merge_views(augment(batch['views'][0], batch['flip'], keys, group))
    found, batch_stats = method.network.project(
      state.params, batch_stats, views, jnp.repeat(batch['valid'], 2), batch_norm)
    return found / jnp.linalg.norm(found, axis=1, keepdims=True), batch_stats

  batches = pipeline.whole_pass_batches(
    source, (group,), batch_size=config.batch_size, seed=config.seed, epoch=_PASS_EPOCH, start_step=0,
    rows=np.arange(config.batch_size))
  batch_stats, found = state.batch_stats, np.zeros((source.num_images, 2, config.head.features), np.float32)
  for batch in batches:
    batch.pop('label')
    units, batch_stats = project(batch_stats, batch)
    whole = np.asarray(batch['valid'])
    found[batch['id'][whole]] = np.asarray(units).reshape(-1, 2, found.shape[-1])[whole]
  return found


def measures(views: np.ndarray, labels: np.ndarray) -> dict[str, float]:
  """What the module says, of unit features [N, 2, D] and classes [N]."""
  first, second = views[:, 0], views[:, 1]
  similarities = first @ second.T
  count, own = len(first), np.trace(similarities)
  others = (similarities.sum() - own) / (count * (count - 1))
  among = first @ first.T
  np.fill_diagonal(among, -np.inf)
  sizes = np.bincount(labels)
  return {'similarity_gap': float(own / count - others),
          'class_retrieval': float(np.mean(labels[among.argmax(axis=1)] == labels)),
          'class_chance': float(np.sum(sizes * (sizes - 1)) / (count * (count - 1)))}


if __name__ == '__main__':
  guarded(main)
