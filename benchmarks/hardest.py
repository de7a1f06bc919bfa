"""The approximate search for the hardest classes against the exact one.

  python -m benchmarks.hardest [--instances 65536] [--repeats 1] [--json FILE]

The rows have D = 128 coordinates, drawn with standard deviations 1/√i for i = 1, 2, …, as the spectra of
learned features fall, and then unit norm. *Spread* rows are only that, which is the hard case. *Clustered*
rows are a class's centre plus such a draw; there are N/400 classes, each a draw plus the centre of one of
20 groups. *Moved* is the exact table of the clustered rows from before they moved, as if it were kept for
another epoch: half of a unit draw is added to each row, which turns it by about 27°.

The mass of found classes is their Σ e^{cosine/τ}, τ = 0.15, over that of the exact K = 100; recall is the
share of the exact that is found. Both are means over 2,048 rows. Times are of whole tables, compiled before;
the searches take turns, and the ratio is the median of those of neighbours in time. Products of two rows are
counted by `hardest_tiles.Plan`. Writes benchmarks/results/hardest.md.
"""
import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks.hardware import hardware
from conic_jax import losses
from conic_jax.hardware import mesh as meshes
from conic_jax.losses import hardest, hardest_tiles

RESULTS = Path(__file__).parent / 'results'
DIM, K, TEMPERATURE, QUERIES, SEED = 128, 100, 0.15, 2048, 0
IMAGENET = 1_281_167
WHY = (
  'The search has less than a fifth of the products. Its time is above a fifth, because rows are also sorted '
  'by cell, and the tiles that are searched gathered.')


def draw(rng: np.random.Generator, count: int) -> np.ndarray:
  """Vectors of a falling spectrum: float32 [count, D]."""
  return rng.standard_normal((count, DIM), np.float32) / np.sqrt(np.arange(1, DIM + 1, dtype=np.float32))


def clustered(rng: np.random.Generator, count: int) -> np.ndarray:
  """Rows around classes, and these around groups."""
  classes = max(1, count // 400)
  centres = draw(rng, 20)[rng.integers(0, 20, classes)] + draw(rng, classes)
  return centres[rng.integers(0, classes, count)] + draw(rng, count)


def cosines(rows: np.ndarray, ids: np.ndarray, found: np.ndarray) -> np.ndarray:
  """Of the rows of these ids [Q] with the found [Q, K]: [Q, K]."""
  return np.stack([rows[others] @ rows[own] for own, others in zip(ids, found)])


def quality(rows: np.ndarray, ids: np.ndarray, found: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
  """(mass, recall) of the found [Q, K] against the exact [Q, K]; see the module."""
  mass = lambda some: np.exp(cosines(rows, ids, some) / TEMPERATURE).sum(axis=1)
  shared = [len(np.intersect1d(mine, theirs)) / K for mine, theirs in zip(found, exact)]
  return float(np.mean(mass(found) / mass(exact))), float(np.mean(shared))


def timed(searches: dict[str, Callable[[], jax.Array]], repeats: int
          ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Tables, and seconds of each; the searches take turns."""
  tables, seconds = {}, {name: [] for name in searches}
  for _ in range(repeats):
    for name, search in searches.items():
      start = time.perf_counter()
      tables[name] = np.asarray(search())
      seconds[name].append(time.perf_counter() - start)
  return tables, {name: np.array(values) for name, values in seconds.items()}


def measure(num_instances: int, repeats: int
            ) -> tuple[dict[str, tuple[float, float]], dict[str, np.ndarray]]:
  """(mass, recall) of each kind of rows, and seconds of each search on the clustered ones."""
  mesh, rng = meshes.make_mesh(), np.random.default_rng(SEED)
  sizes = {'num_instances': num_instances, 'k': K, 'mesh': mesh}
  exact = jax.jit(functools.partial(hardest.table, **sizes))
  approximate = jax.jit(functools.partial(hardest_tiles.table, **sizes, key=jax.random.key(SEED)))
  for_batch = jax.jit(functools.partial(hardest.for_batch, **sizes))
  ids = rng.choice(num_instances, QUERIES, replace=False).astype(np.int32)
  put = lambda rows: jax.device_put(rows, meshes.batch_sharding(mesh))
  unit = lambda rows: np.asarray(losses.normalise(rows))
  batch = lambda rows: np.asarray(for_batch(put(rows), put(ids)))

  rows, spread = unit(clustered(rng, num_instances)), unit(draw(rng, num_instances))
  moved = unit(rows + unit(draw(rng, num_instances)) / 2)
  given = put(rows)
  compiled = {'exact': exact.lower(given).compile(), 'approximate': approximate.lower(given).compile()}
  tables, seconds = timed({name: functools.partial(search, given) for name, search in compiled.items()},
                          repeats)
  found = {
    'clustered': quality(rows, ids, tables['approximate'][ids], tables['exact'][ids]),
    'spread': quality(spread, ids, np.asarray(compiled['approximate'](put(spread)))[ids], batch(spread)),
    'moved': quality(moved, ids, tables['exact'][ids], batch(moved))}
  return found, seconds


def main() -> None:
  """Measures, prints and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--instances', type=int, default=65_536, help='N, a multiple of the devices')
  parser.add_argument('--repeats', type=int, default=1)
  parser.add_argument('--json', type=Path, help='write the figures there too')
  args = parser.parse_args()
  found, seconds = measure(args.instances, args.repeats)
  ratio = float(np.median(seconds['approximate'] / seconds['exact']))
  products = {count: hardest_tiles.make_plan(count, count, K, 1).share_of_products()
              for count in (args.instances, IMAGENET)}
  lines = ['# The approximate search for the hardest classes against the exact one', '',
           f'`python -m benchmarks.hardest --instances {args.instances} --repeats {args.repeats}`', '',
           hardware(), '',
           f'N = {args.instances:,} rows of {DIM} dimensions, K = {K}, drawn as the module says.', '',
           '| rows | table | mass | recall |', '| --- | --- | ---: | ---: |']
  lines += [f'| {kind} | {"exact, an epoch old" if kind == "moved" else "approximate"} | {mass:.3f} | '
            f'{recall:.3f} |' for kind, (mass, recall) in found.items()]
  lines += ['', '| N | products by exact | time by exact | exact (s) | approximate (s) |',
            '| ---: | ---: | ---: | ---: | ---: |',
            f'| {args.instances:,} | {products[args.instances]:.3f} | {ratio:.2f} | '
            f'{np.median(seconds["exact"]):.1f} | {np.median(seconds["approximate"]):.1f} |',
            f'| {IMAGENET:,} | {products[IMAGENET]:.3f} | | | |', '', WHY]
  print('\n'.join(lines))
  (RESULTS / 'hardest.md').write_text('\n'.join(lines) + '\n')
  if args.json:
    figures = {'found': found, 'time_ratio': ratio, 'products': products}
    args.json.write_text(json.dumps(figures, indent=2) + '\n')


if __name__ == '__main__':
  main()
