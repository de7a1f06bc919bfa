"""One-Million in the loop: the pass before training, the hardest classes, and both over a stop."""
import dataclasses
import signal
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import as_method, losses_by_step, tiny

from conic_jax import methods
from conic_jax.data import pipeline
from conic_jax.errors import Stopped, UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.losses import hardest_tiles
from conic_jax.pretraining import train_step, training
from conic_jax.run.session import Session
from conic_jax.run.signals import StopRequest

pytestmark = pytest.mark.slow


def make_config(images, run):
  """One-Million with the tiny network: 48 images, three steps an epoch, two epochs."""
  config = as_method(tiny(images, run), 'one_million', **{'smoothing.k': 5})
  config.eval.knn = config.eval.linear = False
  config.batch_size = 40  # The pass has a last batch that is filled up.
  return config


@pytest.fixture
def config(image_folder, tmp_path):
  return make_config(image_folder, tmp_path / 'run')


def run_pass(config):
  """The state before and after the pass, and the images it saw."""
  with Session(Path(config.run), meshes.make_mesh()) as session:
    task = training.prepare(config, session)
    session.claim_folder('config.run')
    checkpoints = session.checkpoints('checkpoints', 2)
    reporter = training.open_reporter(task, session, None)
    undecodable = pipeline.UndecodableImages(task.data.train)
    before = task.begin()
    after = training.begin(task, checkpoints, undecodable, session, reporter)
    return task.method, task.data.train, before, after


@pytest.fixture(scope='module')
def passed(image_folder, tmp_path_factory):
  """What `run_pass` gives for `config`, which nobody changes."""
  return run_pass(make_config(image_folder, tmp_path_factory.mktemp('pass') / 'run'))


@pytest.mark.parametrize('batch_norm', ['running', 'frozen'])
def test_the_pass_writes_the_features_of_every_image(config, request, batch_norm):
  """Against the same network applied batch by batch, with the statistics carried by hand."""
  config.prior.batch_norm, default = batch_norm, config.prior.batch_norm
  method, source, before, after = (
    request.getfixturevalue('passed') if batch_norm == default else run_pass(config))

  @jax.jit
  def features_of(statistics, batch):
    augmented = train_step.augment_batch(view, batch, config.seed, np.uint32(training.PASS_EPOCH))
    return method.network.project(before.params, statistics, augmented['views'][0][:, 0], batch['valid'],
                                  mode=batch_norm)
  view = (dataclasses.replace(method.views[0], count=1),)
  batches = pipeline.whole_pass_batches(
    source, view, batch_size=40, seed=config.seed, epoch=training.PASS_EPOCH, start_step=0,
    rows=np.arange(40))
  statistics, seen = before.batch_stats, []
  rows = np.array(before.memories['rows'].weights)
  for batch in batches:
    features, new = features_of(statistics, batch)
    statistics = new if batch_norm == 'running' else statistics
    rows[batch['id'][batch['valid']]] = np.asarray(features)[batch['valid']]
    seen += batch['id'][batch['valid']].tolist()
  assert sorted(seen) == list(range(48)), 'every image once, in another order than their ids'
  assert seen != sorted(seen)
  np.testing.assert_allclose(after.memories['rows'].weights, rows, rtol=1e-4, atol=1e-5)
  chex.assert_trees_all_close(after.batch_stats, statistics, rtol=1e-4, atol=1e-5)
  assert after.step == 0
  assert np.all(np.asarray(after.memories['rows'].momentum) == 0)


def test_other_settings_of_the_prior_do_not_go_on_with_a_pass(config, monkeypatch):
  asked = []
  monkeypatch.setattr(StopRequest, 'agreed', lambda self: asked.append(self) or signal.SIGTERM)
  with pytest.raises(Stopped, match='step 1 of the pass'):
    run_pass(config)
  config.prior.batch_norm = 'frozen'
  with pytest.raises(UserError, match=r"prior was .*'running'.* is .*'frozen'"):
    run_pass(config)


def test_settings_of_the_prior(config):
  config.prior.normalise, config.prior.keep_statistics = True, False
  _, _, before, after = run_pass(config)
  norms = np.linalg.norm(np.asarray(after.memories['rows'].weights)[:48], axis=1)
  np.testing.assert_allclose(norms, 1, rtol=1e-5)
  chex.assert_trees_all_equal(after.batch_stats, before.batch_stats)


def test_an_epoch_begins_with_the_hardest_classes_of_its_rows(passed):
  """Against brute force; found for a batch just in time they are the same."""
  method, _, _, after = passed
  shardings = jax.tree.map(lambda leaf: leaf.sharding, after)
  state = train_step.jit_before_epoch(method, shardings)(jax.tree.map(jnp.copy, after))
  unit = np.asarray(after.memories['rows'].weights)[:48]
  unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
  cosines = unit @ unit.T
  np.fill_diagonal(cosines, -2)
  expected = np.sort(np.argsort(-cosines, axis=1)[:, :5], axis=1)
  np.testing.assert_array_equal(np.sort(np.asarray(state.memories['hardest'])[:48], axis=1), expected)

  ids = np.array([3, 3, 47, 0, 12, 13, 14, 15], np.int32)
  features = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  batch = {'id': ids, 'valid': ids >= 0}
  classify = jax.jit(lambda memories, features, batch: method.classify({}, memories, features, batch, None))
  by_epoch = classify(state.memories, features, batch)
  by_batch = classify({'rows': state.memories['rows']}, features, batch)
  np.testing.assert_array_equal(by_batch.hardest, by_epoch.hardest)
  np.testing.assert_array_equal(by_batch.scores.loss, by_epoch.scores.loss)


def test_an_epoch_can_begin_with_an_approximate_search(config, passed, monkeypatch):
  """Of few rows it finds the hardest too: one tile holds them all."""
  method, _, _, after = passed
  config.smoothing.search = 'approximate'
  approximate = methods.make(config, 48, method.mesh, jnp.dtype(jnp.float32)).memories['hardest']
  searches, search = [], hardest_tiles.table
  monkeypatch.setattr(hardest_tiles, 'table',
                      lambda *args, **sizes: searches.append(1) or search(*args, **sizes))
  before = lambda memory: jax.jit(lambda states: memory.before_epoch(states, 'hardest'))(after.memories)
  expected = before(method.memories['hardest'])
  assert not searches
  found = before(approximate)
  assert searches
  np.testing.assert_array_equal(found[:48], expected[:48])


def test_stopped_in_the_pass_and_in_an_epoch_equals_undisturbed(config, tmp_path, monkeypatch):
  config.batch_size = 16
  undisturbed = config.copy_and_resolve_references()
  undisturbed.run = str(tmp_path / 'undisturbed')
  training.pretrain(undisturbed)

  asked, agreed = [], StopRequest.agreed

  def stop_after_the_second_batch(self):
    asked.append(self)
    return signal.SIGTERM if len(asked) == 2 else agreed(self)
  monkeypatch.setattr(StopRequest, 'agreed', stop_after_the_second_batch)
  with pytest.raises(Stopped, match='step 2 of the pass before training; saved'):
    training.pretrain(config)
  run = Path(config.run)
  assert [path.name for path in (run / 'before_training').iterdir()] == ['2']
  config.max_steps = 4
  training.pretrain(config)
  assert not (run / 'before_training').exists()
  config.max_steps = 0
  training.pretrain(config)
  assert losses_by_step(run) == losses_by_step(undisturbed.run)
  assert sorted(losses_by_step(run)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(('field', 'value', 'answer'), [
  ('prior.batch_norm', 'batch', "config.prior.batch_norm is 'batch'"),
  ('smoothing.table', 'step', "config.smoothing.table is 'step'"),
  ('smoothing.search', 'tree', "config.smoothing.search is 'tree'"),
  ('smoothing.alpha', 1.0, 'config.smoothing.alpha is 1.0'), ('smoothing.k', 48, 'config.smoothing.k is 48'),
  ('classifier.drawn', 20, 'set config.smoothing.alpha to 0'),
  ('temperature', 0.01, 'config.temperature is 0.01')])
def test_settings_are_refused(config, field, value, answer, mesh8):
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=answer):
    methods.make(config, 48, mesh8, jnp.dtype(jnp.float32))


def test_an_approximate_search_needs_a_table(config, mesh8):
  config.smoothing.table, config.smoothing.search = 'batch', 'approximate'
  with pytest.raises(UserError, match=r'config\.smoothing\.search .* config\.smoothing\.table'):
    methods.make(config, 48, mesh8, jnp.dtype(jnp.float32))


def test_drawn_negatives_need_no_smoothing(config, mesh8):
  config.smoothing.alpha, config.classifier.drawn = 0.0, 20
  assert methods.make(config, 48, mesh8, jnp.dtype(jnp.float32)).softmax.num_drawn == 20
  config.classifier.drawn = 49
  with pytest.raises(UserError, match='drawn is 49: of 48 classes'):
    methods.make(config, 48, mesh8, jnp.dtype(jnp.float32))
