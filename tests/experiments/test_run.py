"""Real runs of a small grid: nothing is computed twice, and what was killed goes on to the same bits."""
import dataclasses
import os
import re
import signal
import subprocess
import threading
import time
from contextlib import ExitStack

import pytest
from xla_flags import xla_flags

from experiments import jobs, run, summary
from experiments.jobs import Experiment, Scale, Step, Variant
from experiments.run import Work
from experiments.statistics import Higher

pytestmark = pytest.mark.slow

TINY = Scale('cpu', 'folder', {
  'data.dir': 'set', 'data.train': 'train', 'data.test': 'test', 'minutes': 0.0, 'views.size': 16,
  'encoder.name': 'resnet18', 'encoder.blocks': [1], 'encoder.width': 0.125, 'head.hidden': 16,
  'batch_size': 8, 'epochs': 4, 'optimizer.learning_rate': 0.05, 'knn_every': 0, 'log_every': 3,
  'checkpoint.every_epochs': 1.0, 'probe.images': 0, 'eval.k': [5], 'eval.linear': False,
  'eval.baselines': False, 'eval.batch_size': 8, 'figures': False}, {}, 96, (1, 2, 3, 4), (8, 8, 8), 24, 1)
NOTE = Step(('json.tool', '--indent=1', '{run}/summary.json', '{run}/again.json'), 'again.json', ('step',))
EXPERIMENT = Experiment(
  name='tiny', claim='α helps.', source='nowhere', paper='It said so.',
  variants=lambda scale: {'with': Variant('conic', {'alpha': 1.0}, after=(NOTE,)),
                          'without': Variant('conic', {'alpha': 0.0})},
  questions=(Higher('knn_top1', 'with', 'without'),), measures=('knn_top1', 'loss_instance'), seeds=1,
  tuned=False)


@pytest.fixture(scope='module', autouse=True)
def one_device():
  """What a run finds on a CPU."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XLA_FLAGS', xla_flags(1))
    yield


@pytest.fixture(scope='module')
def sets(tmp_path_factory, image_folder):
  """A folder of sets; twice as many images as the fixture has, as 64 are the fewest."""
  root = tmp_path_factory.mktemp('sets') / 'set'
  for split in ('train', 'test'):
    for copy in ('a', 'b'):
      for path in (image_folder / split).glob('*/*'):
        target = root / split / path.parent.name / f'{copy}{path.name}'
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
  return root.parent


@pytest.fixture(scope='module')
def undisturbed(sets, tmp_path_factory):
  """The results of the grid, done at once."""
  root = tmp_path_factory.mktemp('undisturbed')
  Work([EXPERIMENT], TINY, sets, root / 'runs', root).do([0], 10)
  return root


def figures(root):
  return {line['variant']: line['figures'] for line in jobs.read('cpu', root).values()}


def test_all_runs_are_done_and_kept(undisturbed, sets):
  found = figures(undisturbed)
  assert set(found) == {'with', 'without'}
  assert found['with']['step'] == 48
  assert 0 < found['with']['knn_top1'] <= 1
  assert len(found['with']['by_epoch']['loss_instance']) == 4
  line = next(iter(jobs.read('cpu', undisturbed).values()))
  assert line['settings']['data.dir'] == 'set'
  assert line['core_seconds'] > 0
  assert 'jax' in line['versions']
  assert str(sets) not in (undisturbed / 'tiny' / 'results.jsonl').read_text()


def test_a_second_time_computes_nothing(undisturbed, sets, capsys):
  before = (undisturbed / 'tiny' / 'results.jsonl').read_bytes()
  work = Work([EXPERIMENT], TINY, sets, undisturbed / 'other_runs', undisturbed)
  assert work.missing() == []
  work.do([0], 10)
  assert (undisturbed / 'tiny' / 'results.jsonl').read_bytes() == before
  assert not (undisturbed / 'other_runs').exists()


def test_a_killed_run_goes_on_to_the_same_bits(undisturbed, sets, tmp_path, capsys):
  work = Work([EXPERIMENT], TINY, sets, tmp_path / 'runs', tmp_path)
  killed = threading.Thread(target=kill_after_a_checkpoint, args=(work, tmp_path / 'runs'))
  killed.start()
  work.do([0], 10)
  killed.join()
  assert 'with, seed 0: failed, see' in capsys.readouterr().out
  assert set(figures(tmp_path)) == {'without'}
  Work([EXPERIMENT], TINY, sets, tmp_path / 'runs', tmp_path).do([0], 10)
  assert figures(tmp_path) == figures(undisturbed)
  assert 'core_seconds' not in next(line for line in jobs.read('cpu', tmp_path).values()
                               if line['variant'] == 'with')


def kill_after_a_checkpoint(work, runs):
  """Kills the first run that has saved."""
  end = time.monotonic() + 300
  while time.monotonic() < end:
    saved = [path for path in runs.glob('cpu/*/checkpoints/*') if path.name.isdigit()]
    if saved and work._processes:
      os.kill(next(iter(work._processes)), signal.SIGKILL)
      return
    time.sleep(0.02)


def test_a_run_that_another_command_does_is_left_to_it(sets, tmp_path):
  first, second = (Work([EXPERIMENT], TINY, sets, tmp_path / 'runs', tmp_path) for _ in range(2))
  with ExitStack() as one, ExitStack() as two:
    assert first._take(one)[0].variant == 'with'
    assert second._take(two)[0].variant == 'without'
    with ExitStack() as three:
      assert second._take(three) is None
  with ExitStack() as later:
    assert Work([EXPERIMENT], TINY, sets, tmp_path / 'runs', tmp_path)._take(later)[0].variant == 'with'


def test_a_run_that_diverges_is_kept_as_such_and_not_tried_again(sets, tmp_path, capsys):
  diverges = dataclasses.replace(EXPERIMENT, variants=lambda scale: {
    'with': Variant('conic', {'optimizer.learning_rate': 1e30})})
  assert Work([diverges], TINY, sets, tmp_path / 'runs', tmp_path).do([0], 10)
  line = next(iter(jobs.read('cpu', tmp_path).values()))
  assert line['figures'] == {}
  assert re.fullmatch(r'The (loss|grad_norm|largest parameter) was (nan|inf) at step \d+', line['diverged'])
  assert Work([diverges], TINY, sets, tmp_path / 'runs', tmp_path).missing() == []
  assert 'tiny: with, seed 0: diverged. The' in capsys.readouterr().out


def test_a_training_keeps_its_lock_where_its_command_was_killed(tmp_path):
  with run._locked(tmp_path / 'folder') as lock:
    training = subprocess.Popen(['sleep', '60'], pass_fds=(lock.fileno(),))
  with run._locked(tmp_path / 'folder') as lock:
    assert lock is None
  training.kill()
  training.wait()
  with run._locked(tmp_path / 'folder') as lock:
    assert lock is not None


@pytest.mark.parametrize(('arguments', 'said'), [
  (['conic_alfa'], 'no experiment conic_alfa; available: rates, all_methods'),
  (['conic_compact'], 'cifar5k: python -m experiments.sets writes them'),
  (['--core=100000'], 'cores [100000] are not among')])
def test_what_a_user_mistypes_is_told_before_anything_runs(arguments, said, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(jobs, 'read', lambda *_: {})  # Nothing is done yet, whatever has been committed.
  monkeypatch.setattr('sys.argv', ['experiments.run', f'--data={tmp_path}', *arguments])
  with pytest.raises(SystemExit):
    run.main()
  assert said in capsys.readouterr().err


def test_the_pages_say_what_the_runs_found(undisturbed):
  (undisturbed / 'README.md').write_text('# All\n\n<!-- claims -->\n<!-- /claims -->\n\nMore.\n')
  summary.write([EXPERIMENT], TINY, undisturbed)
  page = (undisturbed / 'tiny' / 'README.md').read_text()
  knn = figures(undisturbed)['with']['knn_top1']
  assert f'| with | 1 | {100 * knn:.1f} |' in page
  assert '| kNN: with above without | not decided | 1 of at least 3 seeds |' in page
  assert '![α helps.](figure.png)' in page
  assert 'python -m experiments.run tiny --data=SETS\n' in page
  assert 'missing' not in page
  index = (undisturbed / 'README.md').read_text()
  assert '| [α helps.](tiny/README.md) | nowhere | kNN: with above without: 1 of at least 3 seeds ' in index
  assert index.endswith('\n\nMore.\n')
  summary.write([EXPERIMENT], TINY, undisturbed)
  assert (undisturbed / 'README.md').read_text() == index
