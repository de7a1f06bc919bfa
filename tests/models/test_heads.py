"""The projection head."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conic_jax.models import MLP, mlp_of


def inputs(rows=8, features=6):
  return np.random.default_rng(0).normal(size=(rows, features)).astype(np.float32)


def init(head, x=None):
  return head.init(jax.random.key(0), inputs() if x is None else x)


@pytest.mark.slow
@pytest.mark.parametrize(('hidden', 'norm', 'expected'), [
    (5, True, {'linear1': {'kernel'}, 'norm1': {'scale', 'bias'},
               'linear2': {'kernel'}, 'norm2': {'scale', 'bias'}}),
    (5, False, {'linear1': {'kernel', 'bias'}, 'linear2': {'kernel', 'bias'}}),
    (0, True, {'linear': {'kernel', 'bias'}}),
    (0, False, {'linear': {'kernel', 'bias'}}),
])
def test_layers(hidden, norm, expected):
  params = jax.eval_shape(lambda: init(MLP(hidden, 4, norm)))['params']
  assert {name: set(layer) for name, layer in params.items()} == expected


@pytest.mark.parametrize('head', [
  MLP(hidden, 4, norm, norm_output, output_bias=bias)
  for hidden, norm, norm_output in ((5, True, True), (5, True, False), (5, False, True), (0, False, True))
  for bias in (True, False)])
def test_the_last_layer_goes_without_its_bias_and_a_head_is_known_by_its_parameters(head):
  state, whole = init(head), init(head.clone(output_bias=True))
  *_, last = state['params']
  assert ('bias' in state['params'][last]) == head.output_bias
  np.testing.assert_array_equal(head.apply(state, inputs()), mlp_of(state['params']).apply(state, inputs()))
  params = {**state['params'], last: {'bias': np.zeros(4), **state['params'][last]}}
  assert jax.tree.structure(params) == jax.tree.structure(whole['params'])
  expected = head.clone(output_bias=True).apply({**state, 'params': params}, inputs())
  np.testing.assert_allclose(head.apply(state, inputs()), expected)


def test_without_norm_is_two_linear_layers():
  head, x = MLP(5, 4), inputs()
  state = init(head)
  first, second = (jax.tree.map(np.float64, state['params'][name])
                   for name in ('linear1', 'linear2'))
  expected = np.maximum(x @ first['kernel'] + first['bias'], 0) @ second['kernel'] + second['bias']
  np.testing.assert_allclose(head.apply(state, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_with_norm_is_normalised_twice():
  head, x = MLP(5, 4, norm=True, groups=2), inputs()
  state = init(head)
  kernels = [np.float64(state['params'][name]['kernel']) for name in ('linear1', 'linear2')]
  normalise = lambda x: (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
  forward = lambda x: normalise(np.maximum(normalise(x @ kernels[0]), 0) @ kernels[1])
  run = jax.jit(lambda mode, mask=None: head.apply(state, x, mode, mask, mutable=['batch_stats']),
                static_argnums=0)
  for mode, expected in (('batch', forward(x)),
                         ('grouped', np.concatenate([forward(x[:4]), forward(x[4:])]))):
    y, _ = run(mode)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)
  y, _ = run('batch', np.arange(8) < 5)
  np.testing.assert_allclose(y[:5], forward(x[:5]), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_initialisation_is_uniform_by_the_fan_in():
  params = init(MLP(400, 400), inputs(features=100))['params']
  for layer, fan_in in (('linear1', 100), ('linear2', 400)):
    for value in params[layer].values():
      assert np.abs(value).max() <= fan_in**-0.5
      assert np.std(value) == pytest.approx((3 * fan_in)**-0.5, rel=0.1)
      assert abs(np.mean(value)) < 0.1 * fan_in**-0.5


@pytest.mark.slow
@pytest.mark.parametrize(('hidden', 'norm'), [(5, True), (5, False), (0, False)])
def test_bfloat16_computes_alone(hidden, norm):
  head = MLP(hidden, 4, norm, dtype=jnp.bfloat16)
  state = init(head)
  assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype('float32')}
  y = head.apply(state, inputs())
  assert y.dtype == jnp.float32
  exact = MLP(hidden, 4, norm).apply(state, inputs())
  np.testing.assert_allclose(y, exact, atol=0.05)
  assert not np.array_equal(y, exact)
