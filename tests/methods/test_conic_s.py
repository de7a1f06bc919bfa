"""ConIC-S's settings, and that its window of all images is ConIC."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import as_method

from conic_jax import methods
from conic_jax.errors import UserError
from conic_jax.memories import instance_rows
from conic_jax.memories.window import first_classes

N = 48
FLOAT32 = jnp.dtype(jnp.float32)


@pytest.fixture
def config(tiny_config):
  return as_method(tiny_config, 'conic_s', **{'classifier.window': 24})


def test_beta_makes_up_for_the_classes_outside(config, mesh8):
  """(N − 1) over the N′ − 1 negatives in the sum, so that it is 1 for a window of all."""
  weight = lambda: methods.make(config, N, mesh8, FLOAT32).softmax.negative_weight
  assert weight() == (N - 1) / 23
  config.classifier.beta = 1.5
  assert weight() == 1.5
  config.classifier.beta, config.classifier.window = 0.0, N
  assert weight() == 1


@pytest.mark.slow
def test_a_window_of_all_images_scores_as_conic_does(config, mesh8):
  config.classifier.window = N
  method = methods.make(config, N, mesh8, FLOAT32)
  init = jax.jit(lambda: {name: memory.init(jax.random.key(0)) for name, memory in method.memories.items()})
  classes = first_classes(N, N, config.seed, config.batch_size)
  features = np.random.default_rng(1).normal(size=(32, 8)).astype(np.float32)
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  slots, valid = np.arange(16, dtype=np.int32) * 3, np.ones(16, bool)
  batch = {'id': classes[slots], 'valid': valid, 'host_inputs': {'window': {'slots': slots}}}
  score = lambda method: jax.jit(lambda memories, batch: method.classify(
    {}, memories, features, batch, None).scores)
  ours = score(method)(init(), batch)

  conic = methods.make(as_method(config, 'conic'), N, mesh8, FLOAT32)
  everyone = {'rows': jax.jit(lambda: instance_rows.init(jax.random.key(0), N, 8, 1.0, 8))()}
  batch = {'id': np.asarray(classes[slots], np.int32), 'valid': valid}
  wanted = score(conic)(everyone, batch)
  np.testing.assert_allclose(ours.loss, wanted.loss, rtol=1e-5)
  np.testing.assert_allclose(ours.own_error, wanted.own_error, rtol=1e-4)


def test_a_window_larger_than_the_data_is_conic_and_says_so(config, mesh8):
  config.classifier.window = N + 1
  method = methods.make(config, N, mesh8, FLOAT32)
  assert method.softmax.num_instances == N
  assert 'config.classifier.window is 49 and there are 48 images' in method.notice


@pytest.mark.parametrize(('field', 'value', 'answer'), [
  ('store', 'tape', r"store is 'tape'; available: device, host, disk"),
  ('window', 8, r'window is 8, less than'),
  ('beta', -1.0, r'beta is -1\.0')])
def test_settings_are_refused(config, field, value, answer, mesh8):
  config.classifier[field] = value
  with pytest.raises(UserError, match=answer):
    methods.make(config, N, mesh8, FLOAT32)
