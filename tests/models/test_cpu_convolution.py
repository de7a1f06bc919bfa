"""Convolutions as products: the same numbers as XLA's own, there alone where they are faster."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conic_jax.models import resnet
from conic_jax.models.cpu_convolution import convolve, product_of_patches

NUMBERS = ('NHWC', 'HWIO', 'NHWC')
OPTIONS = {'dimension_numbers': NUMBERS, 'lhs_dilation': (1, 1), 'rhs_dilation': (1, 1),
           'feature_group_count': 1, 'precision': None}


def by_loops(x, kernel, strides, padding):
  """The definition, in float64."""
  x = np.pad(np.float64(x), ((0, 0), *padding, (0, 0)))
  sizes = [(x.shape[axis + 1] - kernel.shape[axis]) // strides[axis] + 1 for axis in (0, 1)]
  out = np.zeros((len(x), *sizes, kernel.shape[-1]))
  for v, w in np.ndindex(*sizes):
    window = x[:, v * strides[0]:, w * strides[1]:][:, :kernel.shape[0], :kernel.shape[1]]
    out[:, v, w] = np.einsum('bijc,ijcd->bd', window, np.float64(kernel))
  return out


def arrays(x_shape, kernel_shape):
  rng = np.random.default_rng(0)
  return rng.standard_normal(x_shape, np.float32), rng.standard_normal(kernel_shape, np.float32)


shapes = st.tuples(
  st.integers(1, 5), st.integers(1, 5), st.sampled_from([(1, 1), (3, 3), (1, 3), (5, 5), (7, 7)]),
  st.integers(1, 3), st.integers(0, 3)).filter(
    lambda drawn: min(drawn[0] + 2 * drawn[4] - drawn[2][0], drawn[1] + 2 * drawn[4] - drawn[2][1]) >= 0)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(st.lists(shapes, min_size=10, max_size=10))
def test_a_product_of_patches_is_the_convolution(drawn):
  """Ten shapes are one program."""
  inputs = [arrays((2, height, width, 3), (*size, 3, 4)) for height, width, size, _, _ in drawn]
  options = [((stride, stride), ((margin, margin),) * 2) for *_, stride, margin in drawn]

  @jax.jit
  def products(inputs):
    return [product_of_patches(*each, *how) for each, how in zip(inputs, options, strict=True)]
  for result, each, how in zip(products(inputs), inputs, options, strict=True):
    np.testing.assert_allclose(result, by_loops(*each, *how), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('size', 'side', 'stride'),
                         [(1, 8, 1), (1, 8, 2), (3, 1, 1), (3, 2, 1), (3, 4, 2), (3, 8, 1)])
def test_the_convolution_and_its_gradients_are_xlas(size, side, stride):
  x, kernel = arrays((3, side, side, 5), (size, size, 5, 7))
  padding = ((size // 2,) * 2,) * 2
  ours = lambda x, kernel: convolve(x, kernel, (stride, stride), padding, **OPTIONS)
  xlas = lambda x, kernel: jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, dimension_numbers=NUMBERS)
  y, pull = jax.vjp(jax.jit(ours), x, kernel)
  wanted, pull_wanted = jax.vjp(jax.jit(xlas), x, kernel)
  np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)
  weights = np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape)
  for gradient, wanted_gradient in zip(pull(weights), pull_wanted(weights), strict=True):
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-4, atol=1e-4)


def convolutions(size, side, platform, **options):
  """How many convolutions a program of one has, on a platform."""
  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, side, side, 4), (size, size, 4, 6))]
  one = lambda x, kernel: convolve(x, kernel, (1, 1), ((size // 2,) * 2,) * 2, **OPTIONS | options)
  text = jax.jit(one).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
  return text.count('stablehlo.convolution')


@pytest.mark.parametrize(('size', 'side', 'product'),
                         [(1, 8, True), (3, 2, True), (3, 1, True), (3, 3, False)])
def test_a_product_is_taken_on_a_cpu_alone_and_by_shape(size, side, product):
  assert convolutions(size, side, 'cpu') == (not product)
  assert convolutions(size, side, 'tpu') == convolutions(size, side, 'cuda') == 1


def test_dilated_and_grouped_convolutions_are_xlas():
  assert convolutions(3, 2, 'cpu', rhs_dilation=(2, 2), lhs_dilation=(1, 1)) == 1


def test_the_residual_network_has_no_convolution_on_a_small_map():
  """At 32 pixels the last two stages of a ResNet-18 have maps of 2x2 and 1x1."""
  network = resnet.ResNet(*resnet.ARCHITECTURES['resnet18'])
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  variables = jax.eval_shape(network.init, jax.random.key(0), images)
  text = jax.jit(network.apply).lower(variables, images).as_text()
  # The stem, four convolutions at 8x8, and four at 4x4.
  assert text.count('stablehlo.convolution') == 9
