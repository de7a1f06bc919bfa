"""Losses against float64 references and the identities of ConIC's §3.2 and Appendix B."""
import doctest
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from conic_jax import losses
from conic_jax.losses import dense

TAU = 0.1


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


# Each is one program instead of one for every operation.
conic = jax.jit(lambda views, rows, ids: losses.conic(views, rows, ids, TAU, 2.5))
instance_classification = jax.jit(lambda *arrays: losses.instance_classification(*arrays, TAU))
consistency, contrast, symmetric_kl = map(jax.jit, (losses.consistency, losses.contrast, losses.symmetric_kl))
alignment, uniformity, feature_std = map(jax.jit, (losses.alignment, losses.uniformity, losses.feature_std))
negative_cosine, queue_uniformity = map(jax.jit, (losses.negative_cosine, losses.queue_uniformity))
nt_xent = jax.jit(losses.nt_xent, static_argnums=(2, 3))


def vectors(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(logits):
  exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.mark.slow
def test_the_examples_in_docstrings_run():
  assert doctest.testmod(dense).attempted > 0
  assert doctest.testmod(dense).failed == 0


# ---- Values -----------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), count=st.integers(2, 4), scale=st.floats(1e-2, 1e2))
def test_losses_equal_their_formulas_in_float64(seed, count, scale):
  views, rows = vectors(seed, 3, count, 5) * scale, vectors(seed + 1, 11, 5)
  ids = np.random.default_rng(seed).integers(0, 11, 3)
  instance = instance_classification(
    np.float32(views.reshape(-1, 5)), np.float32(rows), np.repeat(ids, count))
  expected = [-np.log(softmax(unit(rows) @ unit(x) / TAU)[n])
              for n, image in zip(ids, views, strict=True) for x in image]
  np.testing.assert_allclose(instance, expected, rtol=1e-4, atol=2e-5)

  pairs = [[(1 - unit(image)[i] @ unit(image)[j]) ** 2
            for i, j in itertools.permutations(range(count), 2)] for image in views]
  np.testing.assert_allclose(consistency(np.float32(views)), np.mean(pairs, axis=1), rtol=1e-4, atol=1e-6)
  total = conic(np.float32(views), np.float32(rows), ids)
  np.testing.assert_allclose(
    total, np.mean(np.reshape(expected, (3, count)), axis=1) + 2.5 * np.mean(pairs, axis=1),
    rtol=1e-4, atol=1e-4)


def test_consistency_is_no_loss_of_one_view():
  with pytest.raises(ValueError, match='at least two views'):
    losses.consistency(jnp.ones((2, 1, 4)))


@pytest.mark.slow
def test_the_mean_of_a_batch_is_the_mean_of_its_singles(x64):
  """Given the features: batch norm couples images, the losses do not."""
  views, rows, ids = vectors(0, 6, 2, 5), vectors(1, 9, 5), np.arange(6)
  whole = np.mean(conic(views, rows, ids))
  singles = [conic(views[i:i + 1], rows, ids[i:i + 1])[0] for i in range(6)]
  np.testing.assert_allclose(whole, np.mean(singles), rtol=1e-12)


# ---- Gradients --------------------------------------------------------------------------------


@pytest.mark.slow
def test_gradients_agree_with_differences(x64):
  views, rows = jnp.asarray(vectors(0, 3, 3, 5)), jnp.asarray(vectors(1, 9, 5))
  check_grads(jax.jit(lambda v, w: conic(v, w, np.array([1, 4, 4])).sum()), (views, rows), order=2,
              modes=['rev'], rtol=1e-5)


@pytest.mark.slow
def test_gradient_of_the_raw_row_is_projected(x64):
  """∂ℓ/∂w = (I − w̄w̄ᵀ)/‖w‖ · ∂ℓ/∂w̄: tangent to the sphere, the larger the smaller the norm."""
  x, rows = vectors(0, 1, 5), vectors(1, 9, 5) * 0.3
  loss = lambda w: losses.instance_classification(jnp.asarray(x), w, jnp.array([3]), TAU)[0]
  gradient = np.asarray(jax.jit(jax.grad(loss))(rows))
  w, norms = unit(np.asarray(rows)), np.linalg.norm(rows, axis=1)
  errors = softmax(w @ unit(np.asarray(x))[0] / TAU) - (np.arange(9) == 3)
  raw = errors[:, None] * unit(np.asarray(x)) / TAU
  for n in range(9):
    projection = (np.eye(5) - np.outer(w[n], w[n])) / norms[n]
    np.testing.assert_allclose(gradient[n], projection @ raw[n], atol=1e-9)
    assert abs(gradient[n] @ w[n]) < 1e-9


def test_gradient_of_consistency_in_the_unit_feature(x64):
  """Appendix B: ∂ℓc/∂x̄ᵢ = −2 (1 − x̄ᵢᵀx̄ⱼ) x̄ⱼ, and its projection in the raw feature."""
  first, second = vectors(0, 2, 5)
  expected = -2 * (1 - unit(first) @ unit(second)) * unit(second)
  gradient = jax.jit(jax.grad(lambda v: losses.consistency(v)[0]))(np.array([[first, second]]))[0, 0]
  projection = np.eye(5) - np.outer(unit(first), unit(first))
  np.testing.assert_allclose(gradient, projection @ expected / np.linalg.norm(first), rtol=1e-8)


def test_hard_pairs_have_the_larger_gradient(x64):
  """‖∂ℓc/∂x‖ = 2 (1 − cos θ) sin θ of unit features, which grows up to 120°."""
  angles = np.radians([10, 40, 80, 115])
  loss = lambda first, second: losses.consistency(jnp.stack([first, second])[None])[0]
  gradient = jax.jit(jax.grad(loss))
  norms = [np.linalg.norm(gradient(np.array([np.cos(a), np.sin(a)]), np.array([1.0, 0.0]))) for a in angles]
  np.testing.assert_allclose(norms, 2 * (1 - np.cos(angles)) * np.sin(angles), rtol=1e-9)
  assert norms == sorted(norms)
  assert norms[0] < norms[-1] / 10


# ---- Geometry ---------------------------------------------------------------------------------


def test_a_rotation_about_the_row_keeps_its_logit_and_changes_consistency(x64):
  """Why the classification loss alone is not direct for consistency: x̄ may circle about w̄."""
  row = np.eye(5)[0]
  plane = np.linalg.qr(vectors(3, 4, 4))[0]
  rotation = np.block([[np.eye(1), np.zeros((1, 4))], [np.zeros((4, 1)), plane]])
  first, second = unit(vectors(4, 2, 5) + 2 * row)
  np.testing.assert_allclose(rotation @ second @ row, second @ row, atol=1e-12)
  one_class = lambda x: instance_classification(x[None], np.array([row, -row]), np.array([0]))
  np.testing.assert_allclose(one_class(rotation @ second), one_class(second), rtol=1e-9)
  pair = lambda x: consistency(np.array([[first, x]]))[0]
  assert abs(pair(rotation @ second) - pair(second)) > 1e-2


def test_losses_do_not_depend_on_scale_or_on_a_common_rotation(x64):
  views, rows, ids = vectors(0, 4, 2, 5), vectors(1, 9, 5), np.arange(4)
  rotation = np.linalg.qr(vectors(2, 5, 5))[0]
  reference = conic(views, rows, ids)
  moved = conic(3 * views @ rotation, 0.2 * rows @ rotation, ids)
  np.testing.assert_allclose(moved, reference, rtol=1e-9)


def test_normalise_is_finite_at_zero():
  value, gradient = jax.jit(jax.value_and_grad(lambda x: losses.normalise(x).sum()))(np.zeros(4, np.float32))
  assert value == 0
  chex.assert_tree_all_finite(gradient)


# ---- Measures ---------------------------------------------------------------------------------


def test_alignment_and_uniformity_equal_their_definitions(x64):
  views, valid = vectors(0, 6, 3, 5), np.array([1, 1, 0, 1, 1, 1], bool)
  kept = unit(views)[valid]
  distances = [np.sum((x[i] - x[j]) ** 2) for x in kept for i, j in itertools.combinations(range(3), 2)]
  np.testing.assert_allclose(alignment(views, valid), np.mean(distances), rtol=1e-9)
  first = kept[:, 0]
  kernel = [np.exp(-2 * np.sum((a - b) ** 2)) for a, b in itertools.permutations(first, 2)]
  np.testing.assert_allclose(uniformity(views[:, 0], valid), np.log(np.mean(kernel)), rtol=1e-9)


def test_feature_std_is_the_mean_over_dimensions_of_deviations(x64):
  """The dimensions differ in their spread, so that the mean of roots is no root of a mean."""
  features, valid = vectors(0, 9, 4) * [0.1, 1, 3, 9], np.arange(9) != 4
  expected = (unit(features[valid]) * 2).std(axis=0).mean()
  found = feature_std(features, valid)
  np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_one_image_has_no_deviation():
  valid = np.arange(5) == 3
  assert feature_std(np.float32(vectors(0, 5, 16)), valid) < 1e-6


def test_feature_std_tells_collapse_from_spread():
  valid = np.ones(4096, bool)
  spread = feature_std(np.float32(vectors(0, 4096, 16)), valid)
  collapsed = feature_std(np.tile(np.float32(vectors(1, 1, 16)), (4096, 1)), valid)
  assert abs(spread - 1) < 0.02
  assert collapsed < 1e-3


def test_masked_mean_leaves_out_what_is_not_finite():
  values = jnp.array([1.0, jnp.nan, 3.0])
  mean, gradient = jax.jit(jax.value_and_grad(losses.masked_mean))(values, np.array([True, False, True]))
  assert mean == 2
  np.testing.assert_array_equal(gradient, [0.5, 0, 0.5])
  assert losses.masked_mean(values, jnp.zeros(3, bool)) == 0


# ---- Contrast, consistency, uniformity ------------------------------------------------------------


def as_tensor(x):
  return torch.tensor(np.asarray(x, np.float64))


@pytest.mark.parametrize('queries', [1, 4])
def test_contrast_equals_its_formula(queries):
  positives, negatives = 3 * vectors(0, 5, queries), 3 * vectors(1, 5, queries, 7)
  expected = [-np.log(np.exp(p).sum() / (np.exp(p).sum() + np.exp(n).sum()))
              for p, n in zip(positives, negatives, strict=True)]
  found = contrast(np.float32(positives), np.float32(negatives))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  if queries == 1:
    logits = torch.cat([as_tensor(positives), as_tensor(negatives)[:, 0]], 1)
    cross_entropy = F.cross_entropy(logits, torch.zeros(5, dtype=torch.long), reduction='none')
    np.testing.assert_allclose(found, cross_entropy, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_contrast_starts_alike_for_one_four_and_nine_queries():
  """InsCon, §3.3: with logits of random features the three losses start near log(K)."""
  for queries, keys in ((1, 65_536), (4, 65_536), (9, 64_512)):
    start = contrast(np.zeros((1, queries), np.float32), np.zeros((1, queries, keys), np.float32))
    np.testing.assert_allclose(start, np.log1p(keys), rtol=1e-5)


@pytest.mark.slow
def test_masked_negatives_do_not_count():
  positives, negatives = np.float32(vectors(0, 2, 1)), np.float32(vectors(1, 2, 1, 6))
  hide = lambda logits: np.where(np.arange(6) < 4, logits, np.float32(losses.MASKED))
  np.testing.assert_allclose(contrast(positives, hide(negatives)), contrast(positives, negatives[..., :4]),
                             rtol=1e-6)
  p, q = 5 * negatives[:, 0], 5 * np.float32(vectors(2, 2, 6))
  np.testing.assert_allclose(symmetric_kl(hide(p), hide(q)), symmetric_kl(p[:, :4], q[:, :4]), rtol=1e-5)


def test_symmetric_kl_equals_pytorch():
  p, q = 4 * vectors(0, 3, 9), 4 * vectors(1, 3, 9)
  log_p, log_q = (F.log_softmax(as_tensor(logits), 1) for logits in (p, q))
  kl = lambda a, b: F.kl_div(b, a, reduction='none', log_target=True).sum(1)
  expected = (kl(log_p, log_q) + kl(log_q, log_p)) / 2
  np.testing.assert_allclose(symmetric_kl(np.float32(p), np.float32(q)), expected, rtol=1e-5)
  np.testing.assert_array_equal(symmetric_kl(np.float32(p), np.float32(p)), 0)


@pytest.mark.slow
def test_nt_xent_equals_its_formula_and_leaves_out_what_is_not_valid():
  views, valid = vectors(0, 5, 2, 6), np.array([True, True, False, True, True])
  flat = unit(views[valid]).reshape(-1, 6)
  logits = flat @ flat.T / 0.3
  expected = []
  for i in range(len(flat)):
    others = np.delete(logits[i], i)
    expected.append(np.log(np.exp(others).sum()) - logits[i, i ^ 1])
  found = nt_xent(np.float32(views), valid, 0.3)
  np.testing.assert_allclose(found[valid], np.reshape(expected, (-1, 2)).mean(1), rtol=1e-5)
  found = nt_xent(np.float32(views), valid, 0.3, 'sum')
  np.testing.assert_allclose(found[valid], np.reshape(expected, (-1, 2)).sum(1), rtol=1e-5)


def test_negative_cosine_equals_pytorch():
  p, z = vectors(0, 4, 7), vectors(1, 4, 7)
  expected = 2 - 2 * F.cosine_similarity(as_tensor(p), as_tensor(z))
  np.testing.assert_allclose(negative_cosine(np.float32(p), np.float32(z)), expected, rtol=1e-5)


@pytest.mark.slow
def test_queue_uniformity_is_one_mean_over_keys_and_pairs():
  queries, keys, t = unit(vectors(0, 6, 5)), unit(vectors(1, 9, 5)), 3.0
  valid = np.array([True] * 5 + [False])
  distances = [((q - k) ** 2).sum() for q in queries[valid] for k in keys]
  pairs = torch.pdist(as_tensor(queries[valid])) ** 2
  expected = np.log(np.exp(-t * np.concatenate([distances, pairs])).mean())
  logits = np.pad(2 * t * queries @ keys.T, ((0, 0), (0, 3)), constant_values=losses.MASKED)
  found = queue_uniformity(np.float32(queries), valid, np.float32(logits), t)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(('function', 'shapes'), [
  (losses.contrast, [(3, 2), (3, 2, 5)]),
  (losses.symmetric_kl, [(3, 5), (3, 5)]),
  (lambda views: losses.nt_xent(views, jnp.array([True, True, False]), 0.2), [(3, 2, 4)]),
  (losses.negative_cosine, [(3, 4), (3, 4)]),
  (lambda q, k: losses.queue_uniformity(q, jnp.array([True, False, True]), k, 2.0), [(3, 4), (3, 6)]),
], ids=['contrast', 'symmetric_kl', 'nt_xent', 'negative_cosine', 'queue_uniformity'])
def test_gradients_of_contrast_and_its_kin(x64, function, shapes):
  check_grads(jax.jit(function), [jnp.asarray(vectors(i, *shape)) for i, shape in enumerate(shapes)], order=1,
              modes=['rev'])


@pytest.mark.parametrize(('loss', 'weight'), [
  (8.0, 0.0), (8.5, 0.0), (7.0, 2.5 * 4 / 8), (6.0, 2.5), (1.0, 2.5)])
def test_paced_weight_waits_for_the_loss_to_fall(loss, weight):
  assert losses.paced_weight(2.5, 4.0, jnp.float32(loss), 8.0) == pytest.approx(weight)
  assert losses.paced_weight(2.5, 0.0, jnp.float32(loss), 8.0) == 2.5


def test_no_gradient_goes_through_the_paced_weight():
  assert jax.grad(lambda loss: losses.paced_weight(2.5, 4.0, loss, 8.0))(7.0) == 0
