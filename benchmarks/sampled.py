"""The sampled classifier's step against the full one's, for growing numbers of instances.

  python -m benchmarks.sampled [--json FILE] [--repeats 10] [--batch 512]

A step is the head's part of a train step: loss and gradient of the features, the rows' SGD, and for the
sampled classifier the exchange with a store on disk, including the host's work. Each of its batches has only
classes outside the window, whose rows were written to the store and then dropped from the system's cache: all
of them enter in one step and equally many leave. The full classifier runs as long as its rows fit in memory;
beyond that the ratio is to the largest one that ran. All variants are interleaved in one process; ratios are
medians of ratios of neighbours in time. Writes benchmarks/results/sampled.md.
"""
import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.hardware import hardware
from conic_jax import losses
from conic_jax.hardware import mesh as meshes
from conic_jax.losses import partitioned
from conic_jax.memories import device_window, instance_rows
from conic_jax.memories.host import HostSettings
from conic_jax.memories.host_rows import HostRows
from conic_jax.memories.store import Layout, open_store
from conic_jax.memories.store_folder import begin_folder
from conic_jax.memories.window import first_classes

RESULTS = Path(__file__).parent / 'results'
SGD = {'momentum': 0.9, 'weight_decay': 1e-4}
TEMPERATURE, NORM, RATE, SEED = 0.1, 1.0, 0.06, 0
ROWS_SGD = instance_rows.RowsSgd(NORM, lr_scale=1.0, **SGD)
WARM_UP = device_window.HOST_LAG + 2  # Sampled steps after which each step also writes the rows that left.


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of a step: N′ slots, B images of V views, D dimensions; and the number of steps."""
  num_slots: int
  batch_size: int
  views: int
  dim: int
  steps: int

  @property
  def features(self) -> jax.Array:
    """float32 [B·V, D] of unit norm."""
    return losses.normalise(jax.random.normal(jax.random.key(1), (self.batch_size * self.views, self.dim)))


def learn(rows: instance_rows.Rows, features: jax.Array, ids: jax.Array, softmax: partitioned.Softmax):
  """The head's part of a step: (loss of each feature [M], gradient of the features [M, D], rows)."""
  weights = jnp.full(len(features), 1 / len(features))

  def loss(features):
    scores = partitioned.scores(rows.weights, features, ids, softmax)
    return jnp.sum(scores.loss * weights), scores
  gradient, scores = jax.grad(loss, has_aux=True)(features)
  classified = instance_rows.Classified(features, ids, weights, scores)
  rows = instance_rows.update(rows, classified, jnp.float32(RATE), softmax, **SGD)
  return scores.loss, gradient, rows


class FullStep:
  """Steps over all classes."""

  def __init__(self, num_instances: int, shape: Shape, mesh: Mesh):
    self.softmax = partitioned.Softmax(num_instances, TEMPERATURE, mesh)
    self.features = jax.device_put(shape.features, meshes.batch_sharding(mesh))
    ids = np.random.default_rng(SEED).choice(num_instances, shape.batch_size, replace=False)
    self.ids = jax.device_put(np.repeat(ids, shape.views).astype(np.int32), meshes.batch_sharding(mesh))
    init = lambda: instance_rows.init(jax.random.key(SEED), num_instances, shape.dim, NORM, mesh.size)
    self.rows = jax.jit(init, out_shardings=meshes.batch_sharding(mesh))()
    step = lambda rows, features, ids: learn(rows, features, ids, self.softmax)
    self.compiled = jax.jit(step, donate_argnums=0).lower(self.rows, self.features, self.ids).compile()

  def step(self) -> None:
    """Takes one step and waits for it."""
    *_, self.rows = jax.block_until_ready(self.compiled(self.rows, self.features, self.ids))

  def last(self) -> tuple[np.ndarray, jax.Array, jax.Array]:
    """Rows, features and the row of each feature's class."""
    return np.asarray(self.rows.weights)[:self.softmax.num_instances], self.features, self.ids


class SampledStep:
  """Steps over a window, including the host's work."""

  def __init__(self, kind: str, num_instances: int, shape: Shape, mesh: Mesh, folder: Path):
    on_device = kind == 'device'
    beta = (num_instances - 1) / (shape.num_slots - 1)
    self.softmax = partitioned.Softmax(shape.num_slots, TEMPERATURE, mesh, negative_weight=beta)
    self.features = jax.device_put(shape.features, meshes.batch_sharding(mesh))
    classes = first_classes(shape.num_slots, num_instances, SEED, shape.batch_size)
    ids = entering_ids(classes, num_instances, shape)
    first_step = 0 if on_device else 1
    init = lambda: device_window.init(jax.random.key(SEED), classes, num_instances, shape.dim, NORM,
                                      shape.batch_size, mesh, on_device)
    shardings = meshes.shardings(jax.eval_shape(init), device_window.partition_rules(mesh, on_device), mesh)
    self.window = jax.jit(init, out_shardings=shardings)()
    settings = HostSettings(
      folder=folder, batch_ids=lambda step: ids[step - first_step], batch_size=shape.batch_size,
      last_step=first_step + shape.steps, save_every=shape.steps, keep=1)
    self.host = HostRows(settings, mesh, kind=kind, num_instances=num_instances, dim=shape.dim, seed=SEED,
                         sgd=ROWS_SGD)
    if not on_device:
      begin_folder(folder, self.host.depends_on)
      fill_store(kind, folder, Layout(num_instances, shape.dim, SEED), ids)
    self.host.start(self.window, first_step, on_device)
    self.done = first_step

    def step(window, inputs, features, done):
      window, outgoing = device_window.exchange(
        window, inputs, done, done, jnp.float32(RATE), sgd=ROWS_SGD, mesh=mesh)
      slots = jnp.repeat(inputs['slots'], shape.views)
      loss, gradient, rows = learn(window.rows, features, slots, self.softmax)
      return window.replace(rows=rows), outgoing, slots, loss, gradient
    over, everywhere = meshes.batch_sharding(mesh), meshes.replicated(mesh)
    inputs = device_window.inputs(shape.batch_size, shape.dim, mesh, on_device)
    self.compiled = jax.jit(
      step, donate_argnums=0, in_shardings=(shardings, over, over, everywhere),
      out_shardings=(shardings, everywhere, over, over, over)).lower(
      self.window, inputs, self.features, jnp.int32(0)).compile()

  def step(self) -> None:
    """Takes one step and waits for it."""
    inputs = self.host.inputs(self.done)
    self.window, outgoing, self.slots, *_ = self.compiled(
      self.window, inputs, self.features, jnp.int32(self.done))
    self.host.receive(self.done, outgoing)
    jax.block_until_ready(self.window)
    self.done += 1

  def last(self) -> tuple[np.ndarray, jax.Array, jax.Array]:
    """Rows, features and the row of each feature's class."""
    return np.asarray(self.window.rows.weights)[:self.softmax.num_instances], self.features, self.slots


def entering_ids(inside: np.ndarray, num_instances: int, shape: Shape) -> np.ndarray:
  """Batches of classes outside the first window, each used once: int64 [steps, B]."""
  count = shape.steps * shape.batch_size
  if num_instances - len(inside) < count:
    raise SystemExit(f'{num_instances} instances are too few for {shape.steps} steps: give fewer --repeats.')
  rng = np.random.default_rng(SEED)
  few = num_instances < 4 * (count + len(inside))
  drawn = np.arange(num_instances) if few else rng.integers(0, num_instances, 4 * count)
  return rng.permutation(np.setdiff1d(drawn, inside))[:count].reshape(shape.steps, -1)


def fill_store(kind: str, folder: Path, layout: Layout, ids: np.ndarray) -> None:
  """Creates a store of step 1 with these rows, none of which is in the system's cache."""
  store = open_store(kind, folder, layout)
  rng = np.random.default_rng(SEED)
  for some in ids:
    rows = rng.standard_normal((len(some), 2, layout.dim), np.float32)
    store.write(some, rows, np.zeros(len(some), np.int64))
  store.checkpoint(1, [])
  store.close()
  for path in folder.rglob('rows'):
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def error(variant: FullStep | SampledStep) -> float:
  """The larger relative error of loss and feature gradient, for some features, against float64."""
  softmax = variant.softmax
  weights, features, own = variant.last()
  scored = lambda x: partitioned.scores(jnp.asarray(weights), x, own, softmax).loss
  loss, pull = jax.vjp(scored, features)
  found = np.asarray(loss), np.asarray(pull(jnp.ones_like(loss))[0])
  some = slice(0, 64)
  expected = float64_head(weights, np.asarray(features)[some], np.asarray(own)[some], softmax)
  return max(float(np.abs(mine[some] - exact).max() / np.abs(exact).max())
             for mine, exact in zip(found, expected))


def float64_head(weights: np.ndarray, features: np.ndarray, own: np.ndarray,
                 softmax: partitioned.Softmax) -> tuple[np.ndarray, np.ndarray]:
  """Loss and feature gradient in float64, block by block."""
  x = features.astype(np.float64)
  unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
  own_row = unit(weights[own].astype(np.float64))
  own_term = np.exp(np.sum(own_row * x, axis=1) / softmax.temperature)
  total, weighted = np.zeros(len(x)), np.zeros(x.shape)
  for start in range(0, len(weights), 65_536):
    rows = unit(weights[start:start + 65_536].astype(np.float64))
    terms = softmax.negative_weight * np.exp(x @ rows.T / softmax.temperature)
    total, weighted = total + terms.sum(axis=1), weighted + terms @ rows
  extra = own_term * (1 - softmax.negative_weight)  # The own class has weight one.
  total, weighted = total + extra, weighted + extra[:, None] * own_row
  loss = np.log(total) - np.log(own_term)
  return loss, (weighted / total[:, None] - own_row) / softmax.temperature


def interleave(variants: dict, repeats: int) -> dict[object, np.ndarray]:
  """Seconds per step of each variant; the variants take turns."""
  for variant in variants.values():
    for _ in range(WARM_UP if isinstance(variant, SampledStep) else 1):
      variant.step()
  seconds = {name: [] for name in variants}
  for _ in range(repeats):
    for name, variant in variants.items():
      start = time.perf_counter()
      variant.step()
      seconds[name].append(time.perf_counter() - start)
  return {name: np.array(values) for name, values in seconds.items()}


def temporaries(variant: FullStep | SampledStep) -> int:
  """Bytes of a step's temporaries on a device, as reported by the compiler."""
  return variant.compiled.memory_analysis().temp_size_in_bytes


def measure(sizes: list[int], full_sizes: list[int], shape: Shape, repeats: int) -> list[dict]:
  """Times all variants; see the module."""
  mesh = meshes.make_mesh()
  with tempfile.TemporaryDirectory() as folder:
    variants: dict = {('ours', n): SampledStep('disk', n, shape, mesh, Path(folder) / str(n)) for n in sizes}
    variants |= {('full', n): FullStep(n, shape, mesh) for n in full_sizes}
    seconds = interleave(variants, repeats)
    for n in sizes:
      variants['ours', n].host.close()
    rows = []
    for (name, n), variant in variants.items():
      against = ('full', n) if n in full_sizes else ('full', max(full_sizes))
      rows.append({
        'variant': name, 'num_instances': n, 'baseline_instances': against[1],
        'seconds': float(np.median(seconds[name, n])),
        'time_ratio': float(np.median(seconds[name, n] / seconds[against])),
        'temp_ratio': temporaries(variant) / temporaries(variants[against]),
        'error': error(variant),
        'flat_ratio': float(np.median(seconds[name, n] / seconds[name, sizes[0]]))})
  return rows


def main() -> None:
  """Measures, prints and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--repeats', type=int, default=10)
  parser.add_argument('--batch', type=int, default=512, help='images of a batch, of two views each')
  parser.add_argument('--window', type=int, default=65_536)
  parser.add_argument('--json', type=Path, help='write the rows there too')
  args = parser.parse_args()
  shape = Shape(args.window, args.batch, views=2, dim=128, steps=WARM_UP + args.repeats)
  rows = measure([10 ** 5, 10 ** 6, 10 ** 7, 10 ** 8], [10 ** 5, 10 ** 6], shape, args.repeats)
  lines = ['# The sampled classifier against the full one', '', '`python -m benchmarks.sampled`', '',
           hardware(), '',
           f'Window of {shape.num_slots:,} classes, {shape.batch_size * shape.views:,} features of '
           f'{shape.dim} dimensions, rows outside on disk; medians of {args.repeats} steps.', '',
           '| instances | variant | step (ms) | against the same with 10⁵ | against full (of so many) | '
           'temporaries against full | error |',
           '| ---: | --- | ---: | ---: | ---: | ---: | ---: |']
  for row in rows:
    lines.append('| {num_instances:,} | {variant} | {ms:.1f} | {flat_ratio:.3f} | {time_ratio:.3f} '
                 '({baseline_instances:,}) | {temp_ratio:.3f} | {error:.1e} |'.format(
                   ms=1e3 * row['seconds'], **row))
  print('\n'.join(lines))
  (RESULTS / 'sampled.md').write_text('\n'.join(lines) + '\n')
  if args.json:
    args.json.write_text(json.dumps(rows, indent=2) + '\n')


if __name__ == '__main__':
  main()
