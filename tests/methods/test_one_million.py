"""One-Million in the loop: the pass before training, the hardest classes, and both over a stop."""
import dataclasses
import signal
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import as_method, losses_by_step

from conic_jax import losses, methods, optim, train, train_step
from conic_jax import mesh as meshes
from conic_jax.data import pipeline, sources
from conic_jax.errors import Stopped, UserError

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tiny_config):
  """One-Million with the tiny network: 48 images, three steps an epoch, two epochs."""
  as_method(tiny_config, 'one_million', **{'smoothing.k': 5})
  tiny_config.eval.knn = tiny_config.eval.linear = False
  tiny_config.batch_size = 40  # The pass has a last batch that is filled up.
  return tiny_config


def run_pass(config, mesh):
  """The state before and after the pass, and the batches it saw."""
  source = sources.open_source(config.data, config.data.train)
  method = methods.make(config, source.num_images, mesh, jnp.dtype(jnp.float32))
  optimizer = optim.make_optimizer(config.optimizer)
  init = lambda: train_step.init_state(method, optimizer, config.seed, jnp.float32)
  shardings = train_step.state_shardings(jax.eval_shape(init), method, mesh)
  make = jax.jit(init, out_shardings=shardings)
  with train.StopRequest() as stop:
    shapes = meshes.placed(jax.eval_shape(init), shardings)
    after = train.pass_before_training(method, make, shapes, source, config, mesh, {},
                                       pipeline.Rejects(source), stop, lambda _: None)
  return method, source, make(), after


@pytest.mark.parametrize('batch_norm', ['running', 'frozen'])
def test_the_pass_writes_the_features_of_every_image(config, mesh8, batch_norm):
  """Against the same network applied batch by batch, with the statistics carried by hand."""
  config.prior.batch_norm = batch_norm
  method, source, before, after = run_pass(config, mesh8)
  view = (dataclasses.replace(method.views[0], count=1),)
  batches = pipeline.whole_pass_batches(
    source, view, batch_size=40, seed=config.seed, epoch=train._PASS_EPOCH, start_step=0,
    rows=np.arange(40))
  statistics, seen = before.batch_stats, []
  rows = np.array(before.method_state['rows'].weights)
  for batch in batches:
    views = train_step.augment_batch(view, batch, config.seed, np.uint32(train._PASS_EPOCH))['views'][0][:, 0]
    features, new = method.network.project(before.params, statistics, views, batch['valid'], mode=batch_norm)
    statistics = new if batch_norm == 'running' else statistics
    rows[batch['id'][batch['valid']]] = np.asarray(features)[batch['valid']]
    seen += batch['id'][batch['valid']].tolist()
  assert sorted(seen) == list(range(48)), 'every image once, in another order than their ids'
  assert seen != sorted(seen)
  np.testing.assert_allclose(after.method_state['rows'].weights, rows, rtol=1e-4, atol=1e-5)
  chex.assert_trees_all_close(after.batch_stats, statistics, rtol=1e-4, atol=1e-5)
  assert after.step == 0
  assert np.all(np.asarray(after.method_state['rows'].momentum) == 0)


def test_other_settings_of_the_prior_do_not_go_on_with_a_pass(config, mesh8, monkeypatch):
  asked = []
  monkeypatch.setattr(train.StopRequest, 'agreed', lambda self, now: asked.append(now) or signal.SIGTERM)
  with pytest.raises(Stopped, match='step 1 of the pass'):
    run_pass(config, mesh8)
  config.prior.batch_norm = 'frozen'
  with pytest.raises(UserError, match=r"prior was .*'running'.* is .*'frozen'"):
    run_pass(config, mesh8)


def test_settings_of_the_prior(config, mesh8):
  config.prior.normalise, config.prior.keep_statistics = True, False
  _, _, before, after = run_pass(config, mesh8)
  norms = np.linalg.norm(np.asarray(after.method_state['rows'].weights)[:48], axis=1)
  np.testing.assert_allclose(norms, 1, rtol=1e-5)
  chex.assert_trees_all_equal(after.batch_stats, before.batch_stats)


def test_an_epoch_begins_with_the_hardest_classes_of_its_rows(config, mesh8):
  """Against brute force; found for a batch just in time they are the same."""
  method, _, _, after = run_pass(config, mesh8)
  state = method.before_epoch(after)
  unit = np.asarray(losses.normalise(after.method_state['rows'].weights))[:48]
  cosines = unit @ unit.T
  np.fill_diagonal(cosines, -2)
  expected = np.sort(np.argsort(-cosines, axis=1)[:, :5], axis=1)
  np.testing.assert_array_equal(np.sort(np.asarray(state.method_state['hardest'])[:48], axis=1), expected)

  ids = jnp.array([3, 3, 47, 0, 12, 13, 14, 15], jnp.int32)
  features = losses.normalise(jax.random.normal(jax.random.key(0), (8, 8)))
  classify = lambda: method.classify({}, state.method_state, features, {'id': ids, 'valid': ids >= 0}, None)
  by_epoch = classify()
  method.prepares_epochs = False
  by_batch = classify()
  np.testing.assert_array_equal(by_batch.hardest, by_epoch.hardest)
  np.testing.assert_array_equal(by_batch.scores.loss, by_epoch.scores.loss)


def test_stopped_in_the_pass_and_in_an_epoch_equals_undisturbed(config, tmp_path, monkeypatch):
  config.batch_size = 16
  undisturbed = config.copy_and_resolve_references()
  undisturbed.run = str(tmp_path / 'undisturbed')
  train.pretrain(undisturbed)

  asked, agreed = [], train.StopRequest.agreed

  def stop_after_the_second_batch(self, now):
    asked.append(now)
    return signal.SIGTERM if len(asked) == 2 else agreed(self, now)
  monkeypatch.setattr(train.StopRequest, 'agreed', stop_after_the_second_batch)
  with pytest.raises(Stopped, match='step 2 of the pass before training; saved'):
    train.pretrain(config)
  run = Path(config.run)
  assert [path.name for path in (run / 'before_training').iterdir()] == ['2']
  config.max_steps = 4
  train.pretrain(config)
  assert not (run / 'before_training').exists()
  config.max_steps = 0
  train.pretrain(config)
  assert losses_by_step(run) == losses_by_step(undisturbed.run)
  assert sorted(losses_by_step(run)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(('field', 'value', 'answer'), [
  ('prior.batch_norm', 'batch', "config.prior.batch_norm is 'batch'"),
  ('smoothing.table', 'step', "config.smoothing.table is 'step'"),
  ('smoothing.alpha', 1.0, 'config.smoothing.alpha is 1.0'), ('smoothing.k', 48, 'config.smoothing.k is 48'),
  ('classifier.drawn', 20, 'set config.smoothing.alpha to 0'),
  ('temperature', 0.01, 'config.temperature is 0.01')])
def test_settings_are_refused(config, field, value, answer, mesh8):
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=answer):
    methods.make(config, 48, mesh8, jnp.dtype(jnp.float32))


def test_drawn_negatives_need_no_smoothing(config, mesh8):
  config.smoothing.alpha, config.classifier.drawn = 0.0, 20
  assert methods.make(config, 48, mesh8, jnp.dtype(jnp.float32)).softmax.num_drawn == 20
  config.classifier.drawn = 49
  with pytest.raises(UserError, match='drawn is 49: of 48 classes'):
    methods.make(config, 48, mesh8, jnp.dtype(jnp.float32))
