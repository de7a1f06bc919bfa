"""The kernels of both passes equal the dense softmax with SGD in float64, and compile for absent hardware."""
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from support import devices_or_skip
from test_partitioned import (
  assert_equal,
  draw_negatives,
  make_hardest,
  make_rows,
  make_step,
  own_labels,
  reference,
  unit,
)

from conic_jax.hardware import mesh as meshes
from conic_jax.hardware import program_cost
from conic_jax.losses import fused_negatives, partitioned
from conic_jax.memories import instance_rows

DIM = 16
KERNELS = pytest.mark.parametrize('kernel', ['triton', 'mosaic'])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """Blocks so small that a TPU's kernels have several, the last of them reaching further than the rows."""
  monkeypatch.setattr(fused_negatives, '_MOSAIC_FEATURES', 128)
  monkeypatch.setattr(fused_negatives, '_MOSAIC_CLASSES', 24)


def make_batch(num_instances, count):
  """Features halfway to their rows, and ids, with the first and the last class among them."""
  rng = np.random.default_rng(3)
  ids = rng.integers(0, num_instances, count // 2, np.int32)
  ids[0], ids[1] = 0, num_instances - 1
  sample_weights = np.full(count, 1 / count, np.float32)
  sample_weights[2] = 0
  features = unit(rng.normal(size=(count, DIM)).astype(np.float32))
  return features, np.repeat(ids, 2), sample_weights


def assert_equals_dense(softmax, rows, batch, labels, factors, tolerance=1e-5, hardest=None, key=None,
                        momentum=0.9):
  count, sample_weights = softmax.num_instances, batch[2]
  expected = reference(rows, *batch, labels, factors, softmax, momentum)
  loss, gradient, scores, new = make_step(softmax, momentum)(rows, *batch, hardest, key, True)
  np.testing.assert_allclose(loss, expected[0], rtol=tolerance)
  assert_equal(np.where(sample_weights > 0, scores.loss, 0), np.where(sample_weights > 0, expected[1], 0),
               tolerance)
  assert_equal(gradient, expected[2], tolerance)
  assert_equal(new.momentum[:count], expected[3].momentum, tolerance)
  assert_equal(new.weights[:count], expected[3].weights, tolerance)


@KERNELS
@pytest.mark.parametrize(('devices', 'num_instances', 'count', 'temperature', 'beta', 'dtype', 'tolerance'), [
  (1, 150, 296, 0.1, 1.0, 'float32', 1e-5),
  (8, 519, 296, 0.1, 3.5, 'float32', 1e-5),
  (8, 61, 24, 0.01, 0.5, 'float32', 1e-5),
  (1, 1, 8, 0.1, 1.0, 'float32', 1e-5),
  (8, 519, 40, 0.15, 1.0, 'bfloat16', 3e-2),
  (1, 150, 40, 0.15, 1e-7, 'float16', 1e-2)])
def test_a_step_equals_dense_sgd(kernel, devices, num_instances, count, temperature, beta, dtype, tolerance):
  """Numbers of rows and features that the blocks do not divide, and rows that pad the last device."""
  mesh = meshes.make_mesh(devices=jax.devices()[:devices])
  softmax = partitioned.Softmax(num_instances, temperature, mesh, jnp.dtype(dtype), beta, kernel=kernel)
  rows, batch = make_rows(num_instances, mesh, norm=0.3), make_batch(num_instances, count)
  labels = own_labels(batch[1], num_instances)
  assert_equals_dense(softmax, instance_rows.Rows(rows.weights, 0.1 * rows.weights), batch, labels,
                      np.where(labels, 1, beta), tolerance)


@KERNELS
def test_drawn_negatives_are_the_only_ones_beside_the_batch(kernel, mesh8):
  num_instances, count, key = 519, 150, jax.random.key(5)
  softmax = partitioned.Softmax(num_instances, 0.1, mesh8, num_drawn=count, kernel=kernel)
  batch = make_batch(num_instances, 40)
  taking_part = draw_negatives(num_instances, key, count)
  taking_part[np.asarray(batch[1])] = True
  labels = own_labels(batch[1], num_instances)
  assert_equals_dense(softmax, make_rows(num_instances, mesh8), batch, labels,
                      np.broadcast_to(taking_part, labels.shape), key=key)


@KERNELS
@pytest.mark.parametrize('momentum', [0.9, 0.0])
def test_smoothed_labels_equal_eq_3(kernel, momentum, mesh8):
  num_instances, alpha = 61, 0.2
  softmax = partitioned.Softmax(num_instances, 0.15, mesh8, smoothing=alpha, kernel=kernel)
  batch = make_batch(num_instances, 16)
  hardest = make_hardest(batch[1], num_instances, 5)
  labels = (1 - alpha) * own_labels(batch[1], num_instances)
  np.put_along_axis(labels, np.repeat(np.asarray(hardest), 2, axis=0), alpha / 5, axis=1)
  assert_equals_dense(softmax, make_rows(num_instances, mesh8), batch, labels, np.ones_like(labels),
                      hardest=hardest, momentum=momentum)


@KERNELS
def test_a_step_that_is_skipped_changes_nothing(kernel, mesh8):
  softmax = partitioned.Softmax(61, 0.1, mesh8, kernel=kernel)
  rows, (features, *others) = make_rows(61, mesh8), make_batch(61, 16)
  before = instance_rows.Rows(rows.weights, rows.weights)
  features[0] = np.nan
  after = make_step(softmax)(before, features, *others, None, None, False)[3]
  np.testing.assert_array_equal(after.weights, rows.weights)
  np.testing.assert_array_equal(after.momentum, rows.weights)


@KERNELS
def test_a_tie_is_correct_and_an_id_of_no_class_has_no_loss(kernel, mesh8):
  """The rows of all classes are the same, but for one that is nearer to every feature."""
  weights = np.tile(np.eye(1, DIM, dtype=np.float32), (instance_rows.padded_rows(61, 8), 1))
  features = np.tile(np.eye(1, DIM, dtype=np.float32), (8, 1))
  ids = np.array([0, 8, 60, 33, 7, 59, -1, 61], np.int32)
  softmax = partitioned.Softmax(61, 0.1, mesh8, kernel=kernel)
  score = jax.jit(lambda weights: partitioned.scores(weights, features, ids, softmax))
  scores = score(weights)
  assert scores.correct[:6].all()
  assert np.flatnonzero(np.isnan(scores.loss)).tolist() == [6, 7]
  np.testing.assert_allclose(scores.loss[:6], np.log(61), rtol=1e-6)
  nearer = weights + np.float32(0.1) * (np.arange(len(weights)) < 60)[:, None] * np.eye(1, DIM, 1, np.float32)
  np.testing.assert_array_equal(score(nearer).correct[:6], ids[:6] == 60)


@pytest.mark.parametrize(('platform', 'capability', 'dtype', 'dim', 'expected'), [
  ('cpu', None, 'bfloat16', 128, 'xla'), ('cpu', None, 'float32', 128, 'xla'),
  ('gpu', '7.0', 'float16', 128, 'xla'), ('gpu', '7.5', 'float16', 128, 'xla'),
  ('gpu', '8.0', 'bfloat16', 128, 'triton'), ('gpu', '9.0', 'float16', 64, 'triton'),
  ('gpu', '10.0', 'bfloat16', 256, 'triton'), ('gpu', '9.0', 'float32', 128, 'xla'),
  ('gpu', '9.0', 'bfloat16', 96, 'xla'), ('gpu', '9.0', 'bfloat16', 8, 'xla'),
  ('gpu', '9.0', 'bfloat16', 512, 'xla'),
  ('tpu', None, 'bfloat16', 128, 'mosaic'), ('tpu', None, 'float32', 384, 'mosaic'),
  ('tpu', None, 'bfloat16', 96, 'xla'), ('tpu', None, 'bfloat16', 640, 'xla'),
  ('tpu', None, 'float16', 128, 'xla')])
def test_a_kernel_suits_the_device_and_the_settings(platform, capability, dtype, dim, expected):
  device = SimpleNamespace(platform=platform, compute_capability=capability)
  mesh = SimpleNamespace(devices=np.array([device]))
  assert partitioned.kernel(dim, partitioned.Softmax(10, 0.1, mesh, jnp.dtype(dtype))) == expected
  for forced in ('xla', 'triton', 'mosaic'):
    assert partitioned.kernel(dim, partitioned.Softmax(10, 0.1, mesh, kernel=forced)) == forced


# ---- With the compilers -------------------------------------------------------------------------


def costs(jaxpr):
  """What the kernels of a program say that they move, in order."""
  found = []
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'pallas_call':
      found.append(equation.params['cost_estimate'])
    for inner in jaxprs_in_params(equation.params):
      found += costs(inner)
  return found


def trace_head(softmax, count, dim):
  """A step of the head, traced from shapes."""
  split = meshes.batch_sharding(softmax.mesh)
  shape = lambda *sides, dtype=jnp.float32: jax.ShapeDtypeStruct(sides, dtype, sharding=split)
  padded = instance_rows.padded_rows(softmax.num_instances, softmax.mesh.size)
  rows = instance_rows.Rows(shape(padded, dim), shape(padded, dim))
  step = jax.jit(lambda rows, *batch: make_step(softmax)(rows, *batch, None, None, True), donate_argnums=0)
  return step.trace(rows, shape(count, dim), shape(count, dtype=jnp.int32), shape(count))


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:The Pallas Triton backend is deprecated:DeprecationWarning')  # JAX 0.11.
@pytest.mark.parametrize(('name', 'platform', 'target', 'most'), [
  ('1xH100-80GB', 'cuda', '__gpu$xla.gpu.triton', 6.0e9),
  ('v5e:2x2', 'tpu', 'tpu_custom_call', 4.0e9)])
def test_no_logits_are_in_an_accelerators_memory(name, platform, target, most, monkeypatch):
  """XLA's form moves 44.5 GB on an H100, and has 423 MB of temporaries."""
  monkeypatch.undo()
  num_instances, count, dim = 1_281_167, 1024, 128
  mesh = meshes.make_mesh(devices=devices_or_skip(name))
  softmax = partitioned.Softmax(num_instances, 0.1, mesh, jnp.bfloat16)
  traced = trace_head(softmax, count, dim)
  padded = instance_rows.padded_rows(num_instances, mesh.size)
  compiled = traced.lower(lowering_platforms=(platform,)).compile()
  memory, text = compiled.memory_analysis(), compiled.as_text()
  assert text.count(f'custom_call_target="{target}"') == 2
  assert memory.temp_size_in_bytes < 32e6
  assert memory.alias_size_in_bytes >= 2 * 4 * padded * dim / mesh.size
  arrays = {tuple(map(int, sides.split(','))) for sides in re.findall(r'\[([\d,]+)\]', text)}
  assert not {sides for sides in arrays if count in sides and max(sides) > count}
  found = costs(traced.jaxpr.jaxpr)
  assert len(found) == 2
  assert 4 * 4 * padded * dim < mesh.size * sum(cost.bytes_accessed for cost in found) < most
  assert mesh.size * sum(cost.flops for cost in found) == 4 * 2 * count * padded * dim


@pytest.mark.filterwarnings('ignore:The Pallas Triton backend is deprecated:DeprecationWarning')  # JAX 0.11.
@pytest.mark.parametrize(('name', 'platform', 'dtype'), [
  ('1xH100-80GB', 'cuda', 'bfloat16'), ('v5e:2x2', 'tpu', 'bfloat16'), ('v5e:2x2', 'tpu', 'float32')])
def test_the_plan_reads_what_the_kernels_cost(name, platform, dtype, monkeypatch):
  monkeypatch.undo()
  num_instances, count, dim = 4000, 512, 128
  mesh = meshes.make_mesh(devices=devices_or_skip(name)[:1])
  traced = trace_head(partitioned.Softmax(num_instances, 0.1, mesh, jnp.dtype(dtype)), count, dim)
  found = program_cost.analyse(traced.lower(lowering_platforms=(platform,)).compile().as_text() or '')
  stated = costs(traced.jaxpr.jaxpr)
  half = sum(kernel.count * kernel.half_flops for kernel in found.kernels)
  assert half == (found.flops if dtype == 'bfloat16' else 0)
  padded = instance_rows.padded_rows(num_instances, 1)
  assert found.flops == pytest.approx(4 * 2 * count * padded * dim, rel=1e-3)
  # A GPU reads the rows once for each block of features; in all, rows thrice and velocities twice at least.
  least = sum(cost.bytes_accessed for cost in stated)
  assert 5 * 4 * padded * dim < least <= found.bytes_accessed < 2 * least
