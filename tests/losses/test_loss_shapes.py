"""Losses refuse shapes that they do not promise to take."""
import jax
import pytest
from support import refuses

from conic_jax import losses
from conic_jax.losses import hardest, hardest_tiles, known_gradient, nce, negatives, partitioned, smoothing


@pytest.mark.parametrize(('function', 'shapes'), [
  (lambda *arrays: losses.instance_classification(*arrays, 0.1), [(4, 3), (5, 3), (1,)]),
  (losses.consistency, [(4, 3)]),
  (lambda loss: losses.paced_weight(1.0, 1.0, loss, 1.0), [(4,)]),
  (losses.alignment, [(4, 2, 3), (1,)]),
  (losses.uniformity, [(4, 3), (4, 1)]),
  (losses.feature_std, [(4, 3), (1,)]),
  (losses.contrast, [(4, 2), (4, 1, 5)]),
  (losses.symmetric_kl, [(4, 5), (1, 5)]),
  (lambda *arrays: losses.nt_xent(*arrays, 0.1), [(4, 3, 3), (4,)]),
  (lambda *arrays: losses.nt_xent(*arrays, 0.1), [(4, 2, 3), (1,)]),
  (losses.negative_cosine, [(4, 3), (1, 3)]),
  (lambda *arrays: losses.queue_uniformity(*arrays, 2.0), [(4, 3), (4,), (1, 5)]),
  (known_gradient.with_gradient, [(4,), (4, 3), (1, 3)]),
  (lambda classes: negatives.drawn(classes, jax.random.key(0), 9, 3), [(4, 1)]),
  (lambda *arrays: smoothing.targets(*arrays, 0, 0.1), [(8, 3), (4, 3), (4, 2), (1,)]),
  (lambda *arrays: smoothing.pull_hardest(*arrays, None, 0, 0.1, 1.0), [(8, 3), (1, 3)]),
])
def test_wrong_shapes(function, shapes):
  refuses(function, *shapes)


def test_wrong_shapes_over_a_mesh(mesh8):
  softmax, noise = partitioned.Softmax(64, 0.1, mesh8), nce.NceSettings(64, 3, 0.1, mesh8)
  key, known = jax.random.key(0), {'num_instances': 64, 'k': 3, 'mesh': mesh8}
  refuses(lambda *arrays: partitioned.scores(*arrays, softmax), (64, 3), (8, 3), (16,))
  refuses(lambda *arrays: nce.nce(*arrays, key, noise), (64, 3), (8, 3), (8,), (16,), ())
  refuses(lambda weights: hardest.table(weights, **known), (64,))
  refuses(lambda weights: hardest_tiles.table(weights, **known, key=key), (64,))
  refuses(lambda *arrays: hardest.for_batch(*arrays, **known), (64, 3), (8, 1))
