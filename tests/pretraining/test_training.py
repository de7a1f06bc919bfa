"""The loop in one process: the road, resuming, bad numbers, float16."""
import contextlib
import functools
import io
import itertools
import json
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import lose_what_followed, losses_by_step, reports_of, tiny, tiny_method

from conic_jax import methods, optim
from conic_jax.command_line import load
from conic_jax.data import pipeline
from conic_jax.data.sampler import Sampler
from conic_jax.errors import Stopped, UserError
from conic_jax.evals import encoders, standalone
from conic_jax.hardware import mesh as meshes
from conic_jax.pretraining import train_step, training
from conic_jax.pretraining.identity import run_identity
from conic_jax.run import loop, verdict
from conic_jax.run.session import Session
from conic_jax.run.signals import StopRequest
from conic_jax.run.state import LossScale

pytestmark = pytest.mark.slow


def told(config):
  """Trains; the summary, and what was printed."""
  with contextlib.redirect_stdout(io.StringIO()) as shown:
    summary = training.pretrain(config)
  return summary, shown.getvalue()


@pytest.fixture(scope='module')
def road(image_folder, tmp_path_factory):
  """A run that does all there is to do: config, summary, what it printed, when the verdict was asked for."""
  config = tiny(image_folder, tmp_path_factory.mktemp('road') / 'whole')
  config.eval.baselines, config.probe.images, config.probe.times = True, 16, 3
  config.knn_every, config.figures = 1, True
  asked, next_word = [], verdict.next_word

  def keep(reports, step, epoch, *others):
    asked.append((step, epoch))
    return next_word(reports, step, epoch, *others)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(verdict, 'next_word', keep)
    summary, shown = told(config)
  return SimpleNamespace(config=config, summary=summary, shown=shown, asked=asked)


@pytest.fixture(scope='module')
def unlabelled(image_folder, road, tmp_path_factory):
  """A run on images without labels that learns nothing, compared with another: config, summary, output."""
  config = tiny(image_folder, tmp_path_factory.mktemp('unlabelled') / 'run')
  config.data.test, config.eval.baselines, config.probe.images = '', True, 16
  config.eval.baseline_weights, config.optimizer.learning_rate = road.config.run, 0.
  config.knn_every, config.figures = 1, True
  summary, shown = told(config)
  return SimpleNamespace(config=config, summary=summary, shown=shown)


def test_the_whole_road_leaves_figures_pictures_and_checkpoints(road):
  summary, run = road.summary, Path(road.config.run)
  assert json.loads((run / 'summary.json').read_text()) == json.loads(json.dumps(summary))
  for figures in (summary, summary['random_init'], summary['pixels']):
    assert 0 <= figures['knn_top1'] <= 1
    assert figures['probe_rankme'] >= 1
    assert 0 <= figures['linear_top1'] <= 1
  assert {path.name for path in (run / 'figures').iterdir()} == {
    'curves.png', 'neighbours.png', 'features.png'}
  assert sorted(path.name for path in (run / 'checkpoints').iterdir()) == ['3', '6']
  assert any((run / 'tensorboard').iterdir())
  config = json.loads((run / 'config.json').read_text())
  assert config['alpha'] == 2.5
  assert config['versions']['jax'] == jax.__version__

  reports = reports_of(run)
  steps = [report['step'] for report in reports]
  assert steps == [0, 1, 2, 3, 3, 4, 5, 6, 6]
  names = {'loss', 'loss_instance', 'loss_consistency', 'instance_top1', 'alignment', 'uniformity',
           'feature_std', 'grad_norm', 'learning_rate', 'images_per_second', 'waiting_for_data'}
  assert names <= reports[-2].keys()
  assert 'knn_top1' in reports[4]
  probed = {'probe_rankme', 'probe_lidar', 'probe_instance_top1', 'probe_std', 'loss_share'}
  assert [report['step'] for report in reports if probed <= report.keys()] == [1, 3, 6]
  assert {f'{name}_{suffix}' for name in probed - {'loss_share'} for suffix in ('random', 'pixels')} <= (
    reports[0].keys())
  assert reports[0]['knn_top1_random'] == summary['random_init']['knn_top1']
  assert reports[0]['knn_top1_pixels'] == summary['pixels']['knn_top1']
  assert summary['probe_rankme'] == pytest.approx(reports[-2]['probe_rankme'])
  words = [report['verdict'] for report in reports if 'verdict' in report]
  assert (len(words), words[-1]) == (3, summary['verdict'])
  assert 'pretrained' in road.shown
  assert road.shown.count('The run is ') == 1 + sum(one != two for one, two in itertools.pairwise(words))
  assert summary['verdict_sentence'] in road.shown or words[-2] == words[-1]


def test_the_verdict_is_of_the_epochs_that_are_over(road):
  assert road.asked == [(1, pytest.approx(1 / 3)), (3, 1.0), (6, 2.0)]


def test_the_images_per_second_are_those_since_the_last_pause(tiny_config, monkeypatch):
  """Batch k takes k seconds, nothing else any. The first step compiles; kNN is measured after the third."""
  now, batches = [0.0], pipeline.train_batches

  def slow(*arguments, **options):
    for count, batch in enumerate(batches(*arguments, **options), start=1):
      now[0] += count
      yield batch
  monkeypatch.setattr(pipeline, 'train_batches', slow)
  monkeypatch.setattr(loop, 'time', SimpleNamespace(perf_counter=lambda: now[0]))
  tiny_config.log_every, tiny_config.knn_every = 2, 1
  tiny_config.eval.knn = tiny_config.eval.linear = False
  training.pretrain(tiny_config)
  reports = [report for report in reports_of(tiny_config.run) if 'loss' in report]
  assert [report['step'] for report in reports] == [1, 2, 4, 6]
  assert 'images_per_second' not in reports[0]
  found = [report['images_per_second'] for report in reports[1:]]
  assert found == pytest.approx([16 / 2, 16 / 4, 32 / (5 + 6)])
  assert [report['waiting_for_data'] for report in reports[1:]] == [1, 1, 1]


def test_what_the_settings_became_is_seen_at_once(tiny_config, monkeypatch):
  """In a file or a pipe too, which would be filled first."""
  class Pipe(io.StringIO):
    seen = ''

    def flush(self):
      self.seen = self.getvalue()

  def settle(config, source, labelled, mesh, say, splits):
    say('a choice')
    raise UserError('the end')
  monkeypatch.setattr(training.settings, 'settle', settle)
  monkeypatch.setattr(sys, 'stdout', pipe := Pipe())
  with pytest.raises(UserError, match='the end'):
    training.pretrain(tiny_config)
  assert pipe.seen == 'a choice\n'


@pytest.mark.parametrize('name', ['instdisc', 'byol'])
def test_knn_compares_the_heads_features_where_asked(tiny_config, name, capsys):
  """While training, after it and as a task: the same figure from all three."""
  tiny_method(tiny_config, name)
  tiny_config.eval.linear, tiny_config.eval.features, tiny_config.knn_every = False, 'head', 1
  tiny_config.optimizer.learning_rate, tiny_config.max_steps = 0.5, 3
  summary = training.pretrain(tiny_config)
  online = [report['knn_top1'] for report in reports_of(tiny_config.run) if 'knn_top1' in report]
  assert online[-1] == summary['knn_top1']
  config = load('configs/knn.py')
  config.encoder = tiny_config.run
  assert standalone.evaluate(config)['knn_top1'] == summary['knn_top1']
  config.eval.features = 'encoder'
  of_encoder = standalone.evaluate(config)
  encoder = encoders.open_encoder(tiny_config.run)
  images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
  both = encoder, encoders.with_head(encoder)
  widths = [jax.jit(opened.encode)(opened.variables, images).shape[1] for opened in both]
  assert widths == [encoder.network.num_features, tiny_config.head.features]
  assert of_encoder.keys() == {'knn_top1', 'knn_top1_k3', 'knn_top1_k5'}
  tiny_config.eval.features = 'neck'
  with pytest.raises(UserError, match=r"config.eval.features is 'neck'; available: encoder, head"):
    training.pretrain(tiny_config)


def test_a_run_of_before_the_heads_bias_was_a_setting_goes_on(tiny_config):
  sampler = Sampler(48, 16, 0)
  before = run_identity(tiny_config, sampler, jnp.float32)
  assert 'output_bias' not in before['config.head']


def test_an_unlabelled_folder_is_enough(unlabelled):
  assert 'knn_top1' not in unlabelled.summary
  assert 'need labels' in unlabelled.shown
  assert (Path(unlabelled.config.run) / 'figures' / 'neighbours.png').exists()


def test_pictures_that_cannot_be_written_end_no_run(tiny_config, road, capsys):
  """First figures/ is a file, then there is a folder in the place of one picture."""
  run = Path(tiny_config.run)
  tiny_config.eval.knn = tiny_config.eval.linear = False
  tiny_config.max_steps, tiny_config.figures = 4, True
  shutil.copytree(road.config.run, run)
  lose_what_followed(run, 3)
  shutil.rmtree(run / 'figures')
  (run / 'figures').touch()
  summary = training.pretrain(tiny_config)
  shown = capsys.readouterr().out
  assert summary['step'] == json.loads((run / 'summary.json').read_text())['step'] == 4
  assert re.findall(r'^Could not draw (\w+)\.png \(.*/figures.*\)\.$', shown, re.MULTILINE) == [
    'curves', 'features', 'neighbours']
  assert 'Pictures:' not in shown

  (run / 'figures').unlink()
  (run / 'figures' / 'features.png' / 'full').mkdir(parents=True)
  tiny_config.max_steps = 5
  assert training.pretrain(tiny_config)['step'] == 5
  shown = capsys.readouterr().out
  assert shown.count('Could not draw') == shown.count('Could not draw features.png (') == 1
  assert f'Pictures: {run}/figures/curves.png, {run}/figures/neighbours.png\n' in shown
  assert {path.name for path in (run / 'figures').iterdir()} == {
    'curves.png', 'features.png', 'neighbours.png'}


def test_without_labels_the_probe_is_compared(unlabelled, road):
  """Beside raw pixels, the random network, and another run's weights."""
  summary, shown = unlabelled.summary, unlabelled.shown
  assert 'need labels' in shown
  header, *rows = re.search(r'.*own other view .*\n(.+\n)+', shown).group().splitlines()
  assert header.split() == ['own', 'other', 'view', 'RankMe']
  assert [re.split('  +', row)[0] for row in rows] == ['raw pixels', 'random network', 'whole', 'pretrained']
  assert 'Warning: the pretrained network is no better than what nobody trained' in shown
  assert summary['baseline_weights']['name'] == road.config.run
  for figures in (summary, summary['random_init'], summary['pixels'], summary['baseline_weights']):
    assert {'probe_rankme', 'probe_lidar', 'probe_instance_top1', 'probe_std'} <= figures.keys()
  assert not any('knn_top1_random' in report for report in reports_of(unlabelled.config.run))


def test_weights_to_compare_with_are_looked_at_before_the_training(tiny_config):
  tiny_config.eval.baseline_weights = '/no/such/weights.pth'
  with pytest.raises(UserError, match=r"config\.eval\.baseline_weights: There is no encoder '/no/such"):
    training.pretrain(tiny_config)
  assert not Path(tiny_config.run).exists()


def test_a_stopped_run_reports_and_judges_as_an_undisturbed_one(tiny_config, road, monkeypatch):
  """Which alone is evaluated linearly and beside its baselines."""
  tiny_config.probe.images, tiny_config.probe.times, tiny_config.eval.linear = 16, 3, False
  tiny_config.knn_every = 1
  asked = []
  monkeypatch.setattr(StopRequest, 'agreed', lambda self: (
    asked.append(self), signal.SIGTERM if len(asked) == 4 else None)[1])
  with pytest.raises(Stopped):
    training.pretrain(tiny_config)
  summary = training.pretrain(tiny_config)
  assert {'step', 'verdict', 'knn_top1'} <= summary.keys()
  assert summary == {name: road.summary[name] for name in summary}
  timed = ('images_per_second', 'waiting_for_data')
  found, wanted = ([{name: value for name, value in report.items() if name not in timed}
                    for report in reports_of(config.run)] for config in (tiny_config, road.config))
  assert found == wanted
  assert [report['step'] for report in found if 'verdict' in report] == [1, 3, 6]


def test_a_run_that_ended_before_its_first_checkpoint_begins_its_reports_anew(tiny_config):
  tiny_config.eval.knn = tiny_config.eval.linear = False
  tiny_config.probe.images, tiny_config.probe.times = 16, 2
  training.pretrain(tiny_config)
  steps = [report['step'] for report in reports_of(tiny_config.run)]
  assert {0, 1, 6} <= set(steps)
  shutil.rmtree(Path(tiny_config.run) / 'checkpoints')
  training.pretrain(tiny_config)
  assert [report['step'] for report in reports_of(tiny_config.run)] == steps


@pytest.mark.parametrize(('first_failing', 'kept'), [(1, 'none'), (2, '3')])
def test_a_last_checkpoint_that_is_not_saved_is_an_error(tiny_config, monkeypatch, first_failing, kept):
  tiny_config.eval.knn = tiny_config.eval.linear = False
  asked = []
  monkeypatch.setattr(Session, 'unsent', lambda self: (
    asked.append(self), 'the bucket is gone' if len(asked) >= first_failing else None)[1])
  path = kept if kept == 'none' else Path(tiny_config.run) / 'checkpoints' / kept
  with pytest.raises(UserError, match=rf'\(the bucket is gone\): the last good checkpoint is {path}\. Free'):
    training.pretrain(tiny_config)
  assert not (Path(tiny_config.run) / 'summary.json').exists()


@pytest.mark.parametrize(('name', 'changes'), [
  ('conic', {}), ('inscon', {}), ('instdisc', {'optimizer.learning_rate': 0.5}),
  ('pic', {'sampler.window': 32, 'sampler.stride': 16})])
def test_a_resumed_run_equals_an_undisturbed_one_to_the_bit(tiny_config, name, changes, capsys):
  """Rows, queues, key encoder, bank and the sampler's window go on where they were.

  The run loses what it did after its fourth step, in the middle of an epoch.
  """
  tiny_method(tiny_config, name, **changes)
  tiny_config.eval.knn = tiny_config.eval.linear = False
  tiny_config.checkpoint.every_epochs = 4 / 3
  training.pretrain(tiny_config)
  undisturbed = losses_by_step(tiny_config.run)
  lose_what_followed(tiny_config.run, 4)
  capsys.readouterr()
  training.pretrain(tiny_config)
  assert 'going on from step 4' in capsys.readouterr().out
  assert losses_by_step(tiny_config.run) == undisturbed
  assert len(undisturbed) == 6


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(tiny_config, road):
  shutil.copytree(road.config.run, tiny_config.run)
  tiny_config.encoder.width = 0.25
  tiny_config.batch_size = 24
  with pytest.raises(UserError) as error:
    training.pretrain(tiny_config)
  assert 'config.batch_size was 16, is 24' in str(error.value)
  assert "'width': 0.125" in str(error.value)
  assert 'Set config.run to another folder' in str(error.value)


def test_a_loss_that_is_no_number_stops_with_what_to_do(tiny_config):
  """Step 1 leaves a state whose own loss is NaN: it must not stand as the last good one."""
  run = Path(tiny_config.run)
  tiny_config.eval.knn = tiny_config.eval.linear = False
  tiny_config.checkpoint.every_epochs = 1 / 3
  tiny_config.max_steps = 2
  training.pretrain(tiny_config)
  tiny_config.max_steps = 0
  wild = tiny_config.copy_and_resolve_references()
  wild.optimizer.learning_rate = 1e30
  with pytest.raises(UserError) as error:
    training.pretrain(wild)
  assert re.search(r'was (nan|inf) at step [34]', str(error.value))
  assert 'config.optimizer.learning_rate 1e+30 is too high' in str(error.value)
  assert f"the last good checkpoint is {run / 'checkpoints' / '2'}," in str(error.value)
  assert sorted(path.name for path in (run / 'checkpoints').iterdir()) == ['1', '2']
  tiny_config.checkpoint.every_epochs = 1.0
  assert training.pretrain(tiny_config)['step'] == 6


def test_a_parameter_that_is_no_number_is_not_saved(tiny_config):
  """The loss of the first step is finite, what it leaves is not."""
  tiny_config.optimizer.learning_rate, tiny_config.optimizer.warmup_epochs = 1e38, 0
  tiny_config.classifier.lr_scale, tiny_config.max_steps = 1e3, 1
  with pytest.raises(UserError, match=r'The largest parameter was inf at step 1.*learning_rate 1e\+38'):
    training.pretrain(tiny_config)
  assert not any((Path(tiny_config.run) / 'checkpoints').iterdir())


def test_float16_stops_where_the_smallest_loss_scale_overflows(tiny_config):
  """Every logit overflows at every loss scale, which falls from 2¹⁵ to 1 in 15 steps."""
  tiny_config.dtype, tiny_config.epochs = 'float16', 6
  tiny_config.temperature, tiny_config.checkpoint.every_epochs = 1e-7, 6.0
  with pytest.raises(UserError, match=r'The \w+ was (nan|inf) at step 16;.*float16 is too narrow'):
    training.pretrain(tiny_config)


def test_classes_that_differ_are_refused(tiny_config, tmp_path):
  shutil.copytree(tiny_config.data.dir, tmp_path / 'images')
  (tmp_path / 'images' / 'test' / 'zebras').mkdir()
  tiny_config.data.dir = str(tmp_path / 'images')
  with pytest.raises(UserError, match='differ, in zebras'):
    training.pretrain(tiny_config)


@pytest.mark.parametrize(('field', 'value', 'answer'), [
  ('log_every', 0, 'config.log_every is 0'), ('seed', -1, 'config.seed is -1'),
  ('run', 'ftp://host/run', 'give a folder, gs://BUCKET/PATH'),
  ('eval.batch_size', 12, 'config.eval.batch_size 12 cannot'),
  ('num_instances', 7, 'the data set has 48 images'),
  ('linear.normalise', 'l3', 'available: none, l2, standardise')])
def test_settings_are_refused_before_the_training(tiny_config, field, value, answer):
  with tiny_config.unlocked():
    tiny_config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=answer):
    training.pretrain(tiny_config)


def test_too_many_undecodable_images_stop_the_run_with_their_names(tiny_config, tmp_path):
  shutil.copytree(tiny_config.data.dir, tmp_path / 'images')
  for index in range(12):
    (tmp_path / 'images' / 'train' / 'checks' / f'{index:02d}.png').write_bytes(b'no image')
  tiny_config.data.dir = str(tmp_path / 'images')
  with pytest.raises(UserError, match=r'of 48 images cannot be decoded: .*train/checks/\d\d\.png'):
    training.pretrain(tiny_config)


def test_float16_trains_on_the_road(tiny_config):
  tiny_config.dtype, tiny_config.eval.linear = 'float16', False
  tiny_config.knn_every, tiny_config.figures = 1, True
  training.pretrain(tiny_config)
  last = [report for report in reports_of(tiny_config.run) if 'loss' in report][-1]
  assert np.isfinite(last['loss'])
  assert last['loss_scale'] <= 2**15
  assert last['skipped'] < 6
  tiny_config.dtype = 'float32'
  with pytest.raises(UserError, match=r"config\.dtype was 'float16', is 'float32'"):
    training.pretrain(tiny_config)


def test_fewer_images_than_a_batch_and_an_uneven_batch_are_refused(tiny_config):
  tiny_config.batch_size = 20
  with pytest.raises(UserError, match='nearest that can are 16 and 24'):
    training.pretrain(tiny_config)
  tiny_config.batch_size = 64
  with pytest.raises(UserError, match='48'):
    training.pretrain(tiny_config)


def make_step(config, mesh, dtype):
  """A state before the first step, the step, and a batch of noise."""
  method = methods.make(config, 48, mesh, dtype)
  optimizer = optim.make_optimizer(config.optimizer)
  init = functools.partial(train_step.init_state, method, optimizer, 0, dtype)
  state = jax.jit(init, out_shardings=train_step.state_shardings(jax.eval_shape(init), method, mesh))()
  step = jax.jit(train_step.make_step(method, optimizer, optim.cosine_schedule(0.1, 10), 0, 3, dtype))
  rng = np.random.default_rng(0)
  batch = {'views': (rng.integers(0, 256, (16, 2, 16, 16, 3), np.uint8),),
           'id': np.arange(16, dtype=np.int32), 'valid': np.ones(16, bool),
           'crop': np.zeros((16, 2, 4), np.float32), 'flip': np.zeros((16, 2), bool)}
  return state, step, batch


def test_an_overflow_in_float16_changes_nothing_and_is_counted(tiny_config, mesh8):
  state, step, batch = make_step(tiny_config, mesh8, jnp.dtype(jnp.float16))
  batch = meshes.to_global(batch, mesh8)
  overflowing = state.replace(loss_scale=LossScale(jnp.float32(2.0**24), jnp.int32(5)))
  after, metrics, _ = step(overflowing, batch)
  assert metrics['overflow']
  for name in ('params', 'batch_stats', 'opt_state', 'memories'):
    chex.assert_trees_all_equal(getattr(after, name), getattr(overflowing, name))
  assert (after.step, after.updates, after.skipped) == (1, 0, 1)
  assert after.loss_scale.scale == 2.0**23

  calm = state.replace(loss_scale=LossScale(jnp.float32(2.0**4), jnp.int32(0)))
  after, metrics, _ = step(calm, batch)
  assert not metrics['overflow']
  assert after.skipped == 0
  rows = after.memories['rows'].weights
  assert not np.array_equal(rows, state.memories['rows'].weights)


def test_invalid_images_are_masked_everywhere(tiny_config, mesh8):
  """What an undecodable image holds in its place changes neither loss nor state."""
  state, step, batch = make_step(tiny_config, mesh8, jnp.dtype(jnp.float32))
  black = np.array(batch['views'][0])
  black[5] = 0
  ours = {**batch, 'valid': np.arange(16) != 5}
  first, second = (step(state, meshes.to_global({**ours, 'views': (views,)}, mesh8))
                   for views in (black, batch['views'][0]))
  chex.assert_trees_all_close(first[1], second[1], rtol=1e-5, atol=1e-6)
  chex.assert_trees_all_close(first[0].replace(rng=0), second[0].replace(rng=0), rtol=1e-5, atol=1e-6)
  every, *_ = step(state, meshes.to_global(batch, mesh8))
  assert not np.allclose(every.memories['rows'].weights[5],
                         first[0].memories['rows'].weights[5])
