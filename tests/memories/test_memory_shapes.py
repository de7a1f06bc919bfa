"""Memories refuse shapes that they do not promise to take."""
import jax
import numpy as np
import pytest
from support import refuses

from conic_jax.losses.partitioned import Softmax
from conic_jax.memories import delayed, device_window, instance_rows, key_queue, momentum_encoder
from conic_jax.memories.window import WindowClasses

KEY = jax.random.key(0)
SGD = {'momentum': 0.9, 'weight_decay': 0.0}


@pytest.mark.parametrize(('function', 'shapes'), [
  (lambda lr: delayed.matrix(lr, **SGD), [(1,)]),
  (delayed.apply, [(4, 2, 2), (4, 3)]),
  (delayed.apply, [(1, 2, 2), (4, 2, 3)]),
  (lambda step: momentum_encoder.momentum_at(0.99, 'cosine', step, 10), [(1,)]),
])
def test_wrong_shapes(function, shapes):
  refuses(function, *shapes)


def test_wrong_shapes_of_rows(mesh8):
  rows, softmax = instance_rows.init(KEY, 64, 3, 1.0, 8), Softmax(64, 0.1, mesh8)

  def update(features, ids, weights, lr):
    batch = instance_rows.Classified(features, ids, weights, None)
    return instance_rows.update(rows, batch, lr, softmax, **SGD)

  refuses(update, (8, 3), (8,), (1,), ())
  refuses(update, (8, 3), (8,), (8,), (1,))
  refuses(lambda *arrays: instance_rows.write(rows, *arrays, mesh8), (8,), (8, 3), (1,))


def test_wrong_shapes_of_a_queue(mesh8):
  queue = key_queue.init_queue(KEY, 64, 3, mesh8)
  refuses(lambda *arrays: key_queue.push(queue, *arrays, mesh8), (8, 1), (8,), (8,))
  refuses(lambda *arrays: key_queue.push(queue, *arrays, mesh8), (8, 3), (8,), (1,))
  refuses(lambda queries: key_queue.cosines(queue, queries, mesh8), (2, 4, 3))
  refuses(lambda *arrays: key_queue.cosines(queue, arrays[0], mesh8, arrays[1]), (8, 3), (1,))


def test_wrong_shapes_of_a_window(mesh8):
  refuses(lambda classes: device_window.init(KEY, classes, 64, 3, 1.0, 8, mesh8, False), (16, 1))
  window = device_window.init(KEY, np.arange(16), 64, 3, 1.0, 8, mesh8, False)
  sgd = instance_rows.RowsSgd(norm=1.0, lr_scale=1.0, **SGD)
  refuses(lambda *scalars: device_window.exchange(window, {}, *scalars, sgd=sgd, mesh=mesh8),
          (), (), (1,))
  with pytest.raises(AssertionError, match='Chex'):
    WindowClasses(np.arange(4), np.zeros(1), 8)
  with pytest.raises(AssertionError, match='Chex'):
    WindowClasses(np.arange(4), np.zeros(4), 8).advance(0, np.zeros((2, 1), np.int64))
