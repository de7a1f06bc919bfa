"""SGD as PyTorch's, LARS as SimCLR's, the schedules and the loss scale."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from conic_jax import optim
from conic_jax.errors import UserError
from conic_jax.run.state import LossScale

DECAY, MOMENTUM, TRUST = 0.125, 0.9, 0.02  # A binary decay cancels exactly.
RATES = (0.3, 0.1, 0.5, 0.2)


def settings(**changes):
  """The fields of config.optimizer."""
  return ConfigDict({
    'name': 'sgd', 'learning_rate': 0.3, 'warmup_epochs': 0, 'momentum': MOMENTUM, 'weight_decay': DECAY,
    'decay_vectors': True, 'trust': TRUST, 'lr_in_momentum': True, 'schedule': 'cosine', 'end': 0.0,
    'milestones': (), 'per_epoch': False, **changes})


def problem():
  """Parameters with a bias and an array of zeros, and the gradients of four steps, one of them zero."""
  rng = np.random.default_rng(0)
  shapes = {'kernel': (3, 4), 'zero': (2, 2), 'still': (4, 2), 'bias': (5,)}
  params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
  params['zero'][:] = 0
  gradients = [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in RATES]
  gradients[0]['still'] = -DECAY * params['still']
  return params, gradients


def run(optimizer, params, gradients):
  """The parameters after every step, from the library."""
  as_float32 = lambda tree: jax.tree.map(jnp.float32, tree)
  params = as_float32(params)
  state, seen = optimizer.init(params), []
  for gradient, lr in zip(gradients, RATES, strict=True):
    updates, state = optimizer.update(as_float32(gradient), state, params, lr=jnp.float32(lr))
    params = optax.apply_updates(params, updates)
    seen.append(params)
  return seen


def sgd_by_hand(gradient, p, v, lr, decay):
  v = MOMENTUM * v + gradient + decay * p
  return p - lr * v, v


def lars_by_hand(gradient, p, v, lr, decay):
  direction = gradient + decay * p
  trust, size, length = 1.0, np.linalg.norm(p), np.linalg.norm(direction)
  if p.ndim > 1 and size > 0 and length > 1e-9:
    trust = TRUST * size / length
  v = MOMENTUM * v + lr * trust * direction
  return p - v, v


def lars_outside_by_hand(gradient, p, v, lr, decay):
  step, _ = lars_by_hand(gradient, p, 0, 1.0, decay)
  v = MOMENTUM * v + (p - step)
  return p - lr * v, v


@pytest.mark.parametrize('decay_vectors', [True, False])
def test_adamw_by_hand(decay_vectors):
  params, gradients = problem()
  optimizer = optim.make_optimizer(settings(name='adamw', decay_vectors=decay_vectors, beta2=0.99))
  first, second = ({key: np.zeros_like(p) for key, p in params.items()} for _ in range(2))
  for step, seen in enumerate(run(optimizer, params, gradients)):
    for key, p in params.items():
      gradient, count = gradients[step][key], step + 1
      first[key] = MOMENTUM * first[key] + (1 - MOMENTUM) * gradient
      second[key] = 0.99 * second[key] + 0.01 * gradient**2
      direction = first[key] / (1 - MOMENTUM**count) / (np.sqrt(second[key] / (1 - 0.99**count)) + 1e-8)
      decay = DECAY if p.ndim > 1 or decay_vectors else 0.0
      params[key] = p - RATES[step] * (direction + decay * p)
      np.testing.assert_allclose(seen[key], params[key], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'rule', 'decay_vectors', 'inside'), [
  ('sgd', sgd_by_hand, True, True), ('sgd', sgd_by_hand, False, True), ('lars', lars_by_hand, False, True),
  ('lars', lars_outside_by_hand, False, False)])
def test_four_steps_of_changing_rate_by_hand(name, rule, decay_vectors, inside):
  params, gradients = problem()
  optimizer = optim.make_optimizer(settings(name=name, decay_vectors=decay_vectors, lr_in_momentum=inside))
  velocity = {key: np.zeros_like(p) for key, p in params.items()}
  for step, seen in enumerate(run(optimizer, params, gradients)):
    for key, p in params.items():
      decay = DECAY if p.ndim > 1 or decay_vectors else 0.0
      params[key], velocity[key] = rule(gradients[step][key], p, velocity[key], RATES[step], decay)
      np.testing.assert_allclose(seen[key], params[key], rtol=2e-6, atol=1e-7)


def test_an_unknown_optimizer_or_schedule_says_what_there_is():
  with pytest.raises(UserError, match=r"config\.optimizer\.name is 'adam'; available: sgd, lars"):
    optim.make_optimizer(settings(name='adam'))
  with pytest.raises(UserError, match=r"config\.optimizer\.schedule is 'linear'; available: cosine, steps"):
    optim.make_schedule(settings(schedule='linear'), 1, 1)


def rates(steps, **changes):
  """Of the first steps of eight epochs of five steps."""
  schedule = jax.jit(jax.vmap(optim.make_schedule(settings(**changes), epochs=8, steps_per_epoch=5)))
  return np.asarray(schedule(jnp.arange(steps)))


def test_the_rate_of_steps_is_divided_by_ten_at_each_milestone():
  expected = np.repeat([0.3, 0.3, 0.3, 0.03, 0.03, 0.003, 0.003, 0.003], 5)
  np.testing.assert_allclose(rates(40, schedule='steps', milestones=(3, 5)), expected, rtol=1e-6)
  warm = rates(40, schedule='steps', milestones=(3, 5), warmup_epochs=2)
  np.testing.assert_allclose(warm[:10], 0.3 * np.arange(1, 11) / 10, rtol=1e-6)
  np.testing.assert_allclose(warm[10:], expected[10:], rtol=1e-6)


def test_the_rate_of_each_epoch_is_that_of_its_first_step():
  """MoCo's: η ½(1 + cos(π e/E)) in epoch e; and the last rate is `end`."""
  expected = np.repeat(0.05 + 0.25 * 0.5 * (1 + np.cos(np.pi * np.arange(8) / 8)), 5)
  np.testing.assert_allclose(rates(40, per_epoch=True, end=0.05), expected, rtol=1e-6)
  np.testing.assert_allclose(rates(41, end=0.05)[-1], 0.05, rtol=1e-6)


def test_the_warm_up_goes_on_at_every_step():
  """Its end lies inside an epoch, which then begins at the peak."""
  held, bare = rates(40, per_epoch=True, warmup_epochs=1.4), rates(40, warmup_epochs=1.4)
  np.testing.assert_array_equal(held[:7], bare[:7])
  np.testing.assert_allclose(held[7:10], 0.3, rtol=1e-6)
  np.testing.assert_array_equal(held[10:], np.repeat(bare[10::5], 5))


@pytest.mark.parametrize(('step', 'rate'), [(0, 0.02), (4, 0.1), (5, 0.1), (10, 0.05), (15, 0.0), (20, 0.0)])
def test_cosine_after_a_linear_warm_up(step, rate):
  np.testing.assert_allclose(optim.cosine_schedule(0.1, 15, warmup_steps=5)(step), rate, atol=1e-8)


def test_a_warm_up_of_one_step_begins_at_the_peak():
  schedule = optim.cosine_schedule(0.1, 10, warmup_steps=1)
  np.testing.assert_allclose([schedule(0), schedule(1)], [0.1, 0.1], rtol=1e-6)


def test_a_milestone_after_the_end_is_named():
  with pytest.raises(UserError, match=r'milestones has epoch 8 and the run ends after 8'):
    rates(1, schedule='steps', milestones=(3, 8, 9))


@pytest.mark.parametrize('share', [-0.1, 0.0, 1.0, 60])
def test_milestones_that_are_no_shares_are_refused(share):
  with pytest.raises(UserError, match=r'config\.linear\.milestones is .*: each is a share of the training'):
    optim.check_relative('steps', (0.6, share), 'config.linear')


def test_shares_between_0_and_1_are_milestones():
  optim.check_relative('steps', (0.001, 0.6, 0.999), 'config.linear')
  with pytest.raises(UserError, match=r"config\.linear\.schedule is 'poly'; available: cosine, steps"):
    optim.check_relative('poly', (), 'config.linear')


def test_a_relative_schedule_begins_at_one():
  for name in ('cosine', 'steps'):
    assert optim.relative_schedule(name, (0.5,), 50)(0) == 1


def test_conics_schedule_is_a_bare_cosine():
  schedule = optim.cosine_schedule(0.06, 100)
  expected = [0.03 * (1 + np.cos(np.pi * step / 100)) for step in range(100)]
  np.testing.assert_allclose([schedule(step) for step in range(100)], expected, rtol=1e-5, atol=1e-8)


def test_loss_scale_halves_on_overflow_and_doubles_after_good_steps():
  scale = LossScale.create(jnp.float16)
  assert scale.scale == 2.0**15
  assert scale.next(jnp.array(False)).scale == 2.0**14
  ready = scale.replace(good_steps=jnp.int32(LossScale.GROWTH_STEPS - 1))
  grown = ready.next(jnp.array(True))
  assert (grown.scale, grown.good_steps) == (2.0**16, 0)
  assert LossScale.create(jnp.float32).scale == 1.0


def test_loss_scale_has_a_floor_and_a_ceiling():
  low = LossScale(jnp.float32(1), jnp.int32(0))
  assert low.next(jnp.array(False)).scale == 1.0
  high = LossScale(jnp.float32(LossScale.LARGEST), jnp.int32(LossScale.GROWTH_STEPS - 1))
  assert high.next(jnp.array(True)).scale == LossScale.LARGEST


def test_good_steps_are_counted_until_the_loss_scale_grows():
  scale = LossScale.create(jnp.float16)
  for done in (1, 2, 3):
    scale = scale.next(jnp.array(True))
    assert (scale.scale, scale.good_steps) == (2.0**15, done)
  assert scale.next(jnp.array(False)).good_steps == 0
