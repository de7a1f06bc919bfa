"""The window on the device: where it lies, what it moves, what it tells the host."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import collective_sizes

from conic_jax import losses
from conic_jax.hardware import mesh as meshes
from conic_jax.losses import partitioned
from conic_jax.memories import device_window, instance_rows
from conic_jax.memories.window import first_classes

BATCH, DIM, NORM, MOMENTUM, WEIGHT_DECAY = 16, 32, 0.7, 0.9, 1e-2
KEY = jax.random.key(5)
SGD = {'momentum': MOMENTUM, 'weight_decay': WEIGHT_DECAY}
A = lambda lr: np.array([[MOMENTUM, WEIGHT_DECAY], [-lr * MOMENTUM, 1 - lr * WEIGHT_DECAY]])


def make_window(mesh, num_slots, num_instances, on_device):
  classes = first_classes(num_slots, num_instances, 1, BATCH)
  init = lambda: device_window.init(KEY, classes, num_instances, DIM, NORM, BATCH, mesh, on_device)
  shardings = meshes.shardings(jax.eval_shape(init), device_window.partition_rules(mesh, on_device), mesh)
  return jax.jit(init, out_shardings=shardings)(), shardings


def no_swaps(mesh, on_device):
  """Inputs of a step whose batch is the classes of the first slots."""
  inputs = {name: np.zeros(spec.shape, spec.dtype)
            for name, spec in device_window.inputs(BATCH, DIM, mesh, on_device).items()}
  inputs['slots'] = np.arange(BATCH, dtype=np.int32)
  inputs['swapped'] = np.full(BATCH, device_window.NO_SLOT, np.int32)
  return inputs


def exchange(mesh):
  return functools.partial(device_window.exchange, sgd=instance_rows.RowsSgd(NORM, 1.0, **SGD), mesh=mesh)


@pytest.mark.slow
def test_a_step_moves_no_more_than_the_rows_that_change(mesh8):
  for on_device in (True, False):
    window, shardings = make_window(mesh8, 32_768, 40_000, on_device)
    put = jax.jit(exchange(mesh8), donate_argnums=0,
                  in_shardings=(shardings, meshes.batch_sharding(mesh8), None, None, None),
                  out_shardings=(shardings, meshes.replicated(mesh8)))
    compiled = put.lower(window, no_swaps(mesh8, on_device), jnp.int32(0), jnp.int32(0),
                         jnp.float32(0)).compile()
    assert max(collective_sizes(compiled.as_text())) <= 2 * BATCH * DIM
    # No device's part of the rows is copied.
    assert compiled.memory_analysis().temp_size_in_bytes < window.rows.weights.nbytes / 8


@pytest.mark.parametrize('on_device', [False, True])
def test_rows_begin_as_drawn_and_lie_on_all_devices(mesh8, on_device):
  window, _ = make_window(mesh8, 40, 61, on_device)
  drawn = instance_rows.initial_rows(KEY, jnp.arange(61), DIM, NORM)
  np.testing.assert_allclose(window.rows.weights[:40], drawn[window.classes], rtol=1e-6)
  split = [window.rows.weights, window.rows.momentum]
  if on_device:
    np.testing.assert_allclose(window.outside.rows[:61, 0], drawn, rtol=1e-6)
    assert not np.any(window.outside.rows[:, 1])
    split += [window.outside.rows, window.outside.seen]
  for leaf in split:
    assert leaf.sharding.is_equivalent_to(meshes.batch_sharding(mesh8), leaf.ndim)
  assert window.classes.sharding.is_fully_replicated


def test_the_host_is_told_the_rate_of_the_step_before(mesh8):
  window, _ = make_window(mesh8, 40, 61, on_device=True)
  put, inputs = jax.jit(exchange(mesh8)), no_swaps(mesh8, on_device=True)
  rates, applied, told, updates = [0.5, 0.4, 0.3, 0.2], [True, False, True, True], [], 0
  for step, rate in enumerate(rates):
    window, outgoing = put(window, inputs, jnp.int32(step), jnp.int32(updates), jnp.float32(rate))
    updates += applied[step]
    told.append(float(outgoing['rate']))
  np.testing.assert_array_equal(np.array(told[1:], np.float32), np.array([0.5, np.nan, 0.3], np.float32))
  np.testing.assert_allclose(window.clock.decays[-3:], [A(0.5), np.eye(2), A(0.3)], rtol=1e-6)


def test_a_row_takes_the_last_steps_from_the_clock(mesh8):
  """After steps of rates 0.1, 0.2, 0.3 the host brings rows up to some steps ago, the device the rest."""
  window, _ = make_window(mesh8, 40, 61, on_device=False)
  put, inputs = jax.jit(exchange(mesh8)), no_swaps(mesh8, on_device=False)
  rates = [0.1, 0.2, 0.3, 0.4]
  for step, rate in enumerate(rates[:3]):
    window, _ = put(window, inputs, jnp.int32(step), jnp.int32(step), jnp.float32(rate))

  inside = np.asarray(window.classes)
  entering = [name for name in range(61) if name not in inside][:4]
  slots, leaving = [7, 39, 0, 20], np.asarray(window.rows.weights[np.array([7, 39, 0, 20])])
  row = np.random.default_rng(0).standard_normal((2, DIM))
  inputs['swapped'][:4], inputs['entering'][:4] = slots, entering
  for missing in range(4):
    known = np.linalg.multi_dot([np.eye(2), *map(A, rates[:3 - missing][::-1]), np.eye(2)])
    part = missing, missing  # Of any device, of this swap.
    inputs['missing'][part], inputs['products'][part], inputs['rows'][part] = missing, known, row
  window, outgoing = put(window, inputs, jnp.int32(3), jnp.int32(3), jnp.float32(rates[3]))

  momentum, weights = A(0.3) @ A(0.2) @ A(0.1) @ row[::-1]
  for slot in slots:
    np.testing.assert_allclose(window.rows.weights[slot], weights, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(window.rows.momentum[slot], momentum, rtol=1e-5, atol=1e-6)
  assert np.asarray(window.classes)[slots].tolist() == entering
  assert np.flatnonzero(window.renewed == 3).tolist() == list(range(BATCH))
  np.testing.assert_array_equal(outgoing['rows'][:4, 0], leaving)
  np.testing.assert_array_equal(window.outside.rows[3 % device_window.HOST_LAG], outgoing['rows'])


@pytest.mark.slow
def test_a_window_of_all_classes_is_the_full_softmax(mesh8):
  num_instances, rate = 61, 0.3
  window, _ = make_window(mesh8, num_instances, num_instances, on_device=False)
  rows = instance_rows.init(KEY, num_instances, DIM, NORM, mesh8.size)
  softmax = partitioned.Softmax(num_instances, 0.1, mesh8, negative_weight=1.0)
  put, inputs = jax.jit(exchange(mesh8)), no_swaps(mesh8, on_device=False)

  @jax.jit
  def learn(rows, features, ids):
    scores = partitioned.scores(rows.weights, features, ids, softmax)
    batch = instance_rows.Classified(features, ids, jnp.full(BATCH, 1 / BATCH), scores)
    return scores.loss, instance_rows.update(rows, batch, jnp.float32(rate), softmax, **SGD)

  slot_of = np.argsort(window.classes)
  for step in range(4):
    features = losses.normalise(jax.random.normal(jax.random.key(step), (BATCH, DIM)))
    ids = np.random.default_rng(step).integers(0, num_instances, BATCH)
    inputs['slots'] = slot_of[ids].astype(np.int32)
    window, _ = put(window, inputs, jnp.int32(step), jnp.int32(step), jnp.float32(rate))
    loss, window_rows = learn(window.rows, features, jnp.asarray(inputs['slots']))
    window = window.replace(rows=window_rows)
    expected, rows = learn(rows, features, jnp.asarray(ids, jnp.int32))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(window.rows.weights[slot_of], rows.weights[:num_instances], rtol=1e-4, atol=1e-6)
