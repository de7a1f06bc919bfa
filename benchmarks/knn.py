"""The search for nearest neighbours in kNN evaluation against faiss and scikit-learn, on a CPU.

  python -m benchmarks.knn                       50,000 rows, 2,000 queries, 2,048 dimensions
  python -m benchmarks.knn --dim 128 --queries 10000

The 200 rows of the largest cosine for each query, exact in all three, with the same threads and in turn in
one process. Times are of the processor, all threads together, so that other programs of the machine matter
less; the table gives medians and median ratios of neighbours in time, and the share of neighbours that each
finds of ours. Writes benchmarks/results/knn.md. Needs faiss (pip install -e '.[benchmarks]').
"""
import argparse
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

# OpenMP's threads would wait for work by spinning, which is counted as time of the processor.
os.environ.update(OMP_WAIT_POLICY='PASSIVE', GOMP_SPINCOUNT='0', KMP_BLOCKTIME='0')

import faiss
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.neighbors import NearestNeighbors

from benchmarks.hardware import hardware
from benchmarks.timing import interleaved
from conic_jax.evals import knn
from conic_jax.evals.features import Features
from conic_jax.hardware import mesh as meshes
from conic_jax.hardware.compiler import prepare_compiler

RESULTS = Path(__file__).parent / 'results' / 'knn.md'
NEIGHBOURS = 200


def unit(rows: np.ndarray) -> np.ndarray:
  """Rows of norm 1."""
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def ours(bank: np.ndarray, queries: np.ndarray) -> Callable[[], np.ndarray]:
  """The search of `conic_jax.evals.knn`, to ids on the host."""
  mesh = meshes.make_mesh()
  features = lambda rows: jax.device_put(Features(
    jnp.asarray(rows), jnp.zeros(len(rows), jnp.int32), jnp.arange(len(rows), dtype=jnp.int32),
    jnp.ones(len(rows), jnp.bool)),
    meshes.batch_sharding(mesh))
  held, asked = features(bank), features(queries)
  return lambda: knn.neighbours(held, asked, NEIGHBOURS, mesh)[1]


def by_faiss(bank: np.ndarray, queries: np.ndarray) -> np.ndarray:
  """faiss's exact index of inner products, made anew as an evaluation does."""
  index = faiss.IndexFlatIP(bank.shape[1])
  index.add(unit(bank))
  return index.search(unit(queries), NEIGHBOURS)[1]


def by_sklearn(bank: np.ndarray, queries: np.ndarray) -> np.ndarray:
  """scikit-learn's exact search of unit rows."""
  search = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm='brute').fit(unit(bank))
  return search.kneighbors(unit(queries), return_distance=False)


def shared(found: np.ndarray, wanted: np.ndarray) -> float:
  """The share of neighbours that two searches have in common."""
  return float(np.mean([len(np.intersect1d(*pair)) for pair in zip(found, wanted)]) / NEIGHBOURS)


def main() -> None:
  """Measures, prints and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--rows', type=int, default=50_000)
  parser.add_argument('--queries', type=int, default=2_000)
  parser.add_argument('--dim', type=int, default=2_048)
  parser.add_argument('--repeats', type=int, default=3)
  args = parser.parse_args()
  prepare_compiler()
  faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
  rng = np.random.default_rng(0)
  bank, queries = (rng.standard_normal((count, args.dim), np.float32) for count in (args.rows, args.queries))
  searches = {'conic_jax': ours(bank, queries),
              f'faiss {version("faiss-cpu")}': lambda: by_faiss(bank, queries),
              f'scikit-learn {version("scikit-learn")}': lambda: by_sklearn(bank, queries)}
  found = {name: search() for name, search in searches.items()}
  times = interleaved(searches, args.repeats, time.process_time)
  lines = ['# Nearest neighbours on a CPU', '',
           f'`python -m benchmarks.knn --rows {args.rows} --queries {args.queries} --dim {args.dim} '
           f'--repeats {args.repeats}`', '', hardware(), '',
           '| search | CPU s | ours to it | neighbours in common |', '| --- | ---: | ---: | ---: |']
  for name, seconds in times.items():
    ratio = np.median(times['conic_jax'] / seconds)
    lines.append(f'| {name} | {np.median(seconds):.2f} | {ratio:.2f} | '
                 f'{shared(found[name], found["conic_jax"]):.4%} |')
  print('\n'.join(lines))
  RESULTS.write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
