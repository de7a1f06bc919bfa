"""Trains the same short run with crops antialiased from a factor of 1 and of 2, and compares kNN.

  python -m experiments.antialias IMAGES

IMAGES has train/CLASS/* and val/CLASS/*. Each seed trains both ways on the same images, crops, colours and
first weights; the crops differ where they shrink by less than 2 alone. Everything evaluated is antialiased
as ever. Writes results.md beside this file.
"""
import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.hardware import hardware
from conic_jax import methods, optim
from conic_jax.command_line import load
from conic_jax.data import crops, decode, pipeline
from conic_jax.data.sampler import Sampler
from conic_jax.data.sources import Source, Subset, open_source
from conic_jax.evals import protocols
from conic_jax.evals.features import FrozenEncoder
from conic_jax.hardware import mesh as meshes
from conic_jax.pretraining import train_step
from conic_jax.views import Views

FACTORS = (1.0, 2.0)


def settings(args: argparse.Namespace, seed: int) -> Any:
  """MoCo v2's photos preset on the folder."""
  config: Any = load('configs/moco_v2.py:photos')
  config.data.name, config.data.dir, config.data.test = 'folder', args.images, 'val'
  config.seed, config.epochs = seed, args.epochs
  config.views.size = config.eval.resize = args.size
  return config


def some_classes(source: Source, count: int) -> Subset:
  """The images of the first classes."""
  return Subset(source, np.flatnonzero(source.labels() < count))


def shrunk_share(source: Source, group: Views) -> float:
  """Share of the crops, on images as large as these, that shrink by a factor between 1 and 2."""
  encoded, _ = source.read(np.arange(0, source.num_images, max(1, source.num_images // 64)))
  shapes = np.array([shape for image, *shape in map(decode.prepare, encoded) if image])
  boxes, _ = crops.random_views((group,), np.repeat(shapes, 64, axis=0), np.arange(64 * len(shapes)), 0, 0)
  factor = boxes[..., 2:].max(axis=-1) / group.size
  return float(((factor > 1) & (factor <= 2)).mean())


def knn_after_training(config: Any, train_source: Source, test_source: Source, factor: float) -> float:
  """kNN top-1 of the encoder after all epochs."""
  mesh, dtype = meshes.make_mesh(config.mesh), meshes.compute_dtype(config.dtype)
  method = methods.make(config, train_source.num_images, mesh, dtype)
  optimizer = optim.make_optimizer(config.optimizer)
  sampler = Sampler(train_source.num_images, config.batch_size, config.seed)
  schedule = optim.make_schedule(config.optimizer, config.epochs, sampler.steps_per_epoch)
  state = jax.jit(lambda: train_step.init_state(method, optimizer, config.seed, dtype))()
  step = jax.jit(train_step.make_step(method, optimizer, schedule, config.seed, sampler.steps_per_round,
                                      dtype),
                 donate_argnums=0)
  batches = pipeline.train_batches(train_source, method.views, sampler, start_step=0,
                                   rows=np.arange(config.batch_size), antialias_above=factor)
  for _ in range(config.epochs * sampler.steps_per_epoch):
    batch = next(batches)
    batch.pop('label')
    state, metrics, _ = step(state, meshes.to_global(batch, mesh))
    jax.block_until_ready(metrics['loss'])
  encoder = FrozenEncoder(method.network.encode, train_step.variables(state))
  return protocols.knn(encoder, train_source, test_source, config, mesh)['knn_top1']


def main() -> None:
  """Trains, prints and writes results.md."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('images')
  parser.add_argument('--classes', type=int, default=20)
  parser.add_argument('--epochs', type=int, default=2)
  parser.add_argument('--size', type=int, default=40, help='side of the views in pixels')
  parser.add_argument('--seeds', type=int, default=3)
  args = parser.parse_args()
  config = settings(args, 0)
  train_source, test_source = (
    some_classes(open_source(config.data, split), args.classes) for split in ('train', 'val'))
  found = {factor: [] for factor in FACTORS}
  for seed in range(args.seeds):
    for factor in FACTORS:
      start = time.perf_counter()
      found[factor].append(knn_after_training(settings(args, seed), train_source, test_source, factor))
      print(f'seed {seed}  antialiased above {factor:g}  kNN {found[factor][-1]:.2%}  '
            f'{time.perf_counter() - start:.0f} s', flush=True)
  rows = [f'| {factor:g} | {" | ".join(f"{value:.1%}" for value in values)} | '
          f'{statistics.mean(values):.1%} |' for factor, values in found.items()]
  gains = [100 * (one - two) for one, two in zip(found[1.0], found[2.0], strict=True)]
  share = shrunk_share(train_source, Views(**config.views))
  command = ' '.join(f'--{name}={getattr(args, name)}' for name in ('classes', 'epochs', 'size', 'seeds'))
  table = '\n'.join([
    f'`python -m experiments.antialias IMAGES {command}`, {train_source.num_images:,} images to train on and '
    f'{test_source.num_images:,} to classify; {share:.0%} of the crops shrink by a factor between 1 and 2.',
    '', hardware(), '',
    f'| antialiased above | {" | ".join(f"seed {seed}" for seed in range(args.seeds))} | mean |',
    '| --- |' + ' ---: |' * (args.seeds + 1), *rows, '',
    'kNN top-1 (k = 20). Gain of 1 over 2 in points: ' + ', '.join(f'{gain:+.1f}' for gain in gains)
    + f'; mean {statistics.mean(gains):+.1f}.', ''])
  print(table)
  (Path(__file__).parent / 'results.md').write_text(table)


if __name__ == '__main__':
  main()
