"""PCA to at most 50 dimensions, then t-SNE: a program of its own, as scikit-learn's t-SNE can crash.

It reads features from standard input and writes points to standard output, both in NumPy's format:

  python -P conic_jax/visualise/tsne_process.py SEED SECONDS

Without variance in its input, t-SNE ends its process by a segmentation fault. Nothing of this package is
imported here, so that the start takes no longer than scikit-learn's.
"""
import io
import resource
import signal
import sys

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

_DIMENSIONS, _PERPLEXITY = 50, 30


def embed(features: np.ndarray, seed: int) -> np.ndarray:
  """The points of features, [n, F] to [n, 2]."""
  reduced = PCA(min(_DIMENSIONS, *features.shape), random_state=seed).fit_transform(features)
  reduced = np.pad(reduced, ((0, 0), (0, max(2 - reduced.shape[1], 0))))  # The first plane needs two columns.
  perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
  return TSNE(perplexity=perplexity, init='pca', random_state=seed).fit_transform(reduced)


def main(seed: int, seconds: int) -> None:
  """Embeds standard input; ends itself after some seconds, should its parent be gone by then."""
  signal.alarm(seconds)
  resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
  features = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
  points = io.BytesIO()
  np.save(points, embed(features, seed))
  sys.stdout.buffer.write(points.getvalue())


if __name__ == '__main__':
  main(*map(int, sys.argv[1:]))
