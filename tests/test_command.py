"""The command as a user runs it: mistakes, signals, kills, a full disk, two processes."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from clusters import fork
from support import flags_of, losses_by_step, reports_of, reserved_port, tiny_method
from xla_flags import xla_flags

from conic_jax import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, '-W', 'ignore', '-m', 'conic_jax.main']


def start(*arguments, devices=1, prefix=()):
  environment = {**os.environ, 'XLA_FLAGS': xla_flags(devices)}
  return subprocess.Popen([*prefix, *COMMAND, *arguments], cwd=ROOT, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture
def here(monkeypatch, capsys):
  """Runs the command in this process, which has imported and compiled already, and gives its output."""
  def run(*arguments):
    monkeypatch.setattr(sys, 'argv', ['conic_jax', *arguments])
    capsys.readouterr()
    main.command()
    return capsys.readouterr().out
  return run


def finish(process, seconds=240):
  out, err = process.communicate(timeout=seconds)
  return process.returncode, out, err


def wait_for(process, condition, seconds=180):
  """Waits until the condition holds while the process runs."""
  end = time.time() + seconds
  while not condition():
    assert process.poll() is None, process.communicate()
    assert time.time() < end, 'timed out'
    time.sleep(0.02)


@pytest.fixture
def long_config(tiny_config):
  """A run of 60 steps with a checkpoint every 3 and no evaluation."""
  tiny_config.epochs = 20
  tiny_config.eval.knn = tiny_config.eval.linear = False
  return tiny_config


# ---- Mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(('arguments', 'answer'), [
  ([], r'Which config\? .*Available: configs/align_uniform\.py, configs/byol\.py'),
  (['--config=configs/nope.py'], r"no config file 'configs/nope.py'; available: .*configs/conic.py"),
  (['--config=configs/conic.py:foto'], r"no preset 'foto' .*available: imagenet, .*photos, folder"),
  (['--config=configs/conic.py', '--config.batchsize=3'],
   r'no config\.batchsize; did you mean config\.batch_size\?$'),
  (['--config=configs/conic.py', '--config.views.crp=3'],
   r'no config\.views\.crp; did you mean config\.views\.crop\?$'),
  (['--config=configs/conic.py', '--config.learning_rate=3'], r'mean config\.optimizer\.learning_rate\?$'),
  (['--config=configs/conic.py', '--config.eval.xyz=3'], r'no config\.eval\.xyz; available: baseline_weig'),
  (['--config=configs/conic.py', '--config.batch_size=many'],
   r"config\.batch_size takes a whole number such as 512, not 'many'"),
  (['--config=configs/conic.py', '--config.batch_size=1', '--config.batch_size=1.5'],
   r"config\.batch_size takes a whole number such as 512, not '1\.5'"),
  (['--config=configs/conic.py', '--config.views.size=x1', '--config.views.size=x'],
   r"config\.views\.size takes a whole number such as 224, not 'x1'"),
  (['--config=configs/conic.py:photos', '--config.views.crop=(0.2,)'],
   r'config\.views\.crop is \(0\.2,\): it must have two values above 0 and at most 1, the smaller'),
  (['--config=configs/conic.py:photos', '--config.max_steps=-5'], r'max_steps is -5: it must be at least 0'),
  (['--config=configs/conic.py', '--config.encoder=resnet18'],
   r'config\.encoder is a group of settings: set one of config\.encoder\.\{blocks, frozen_patches, name'),
  (['--config=configs/conic.py', '--batch_size=3'], r'no flag --batch_size; .*mean --config\.batch_size'),
  (['--config=configs/conic.py', 'photos'], r"'photos' is no flag"),
  (['--config=configs/conic.py:folder', '--config.data.dir=/no/such'], r'/no/such'),
  (['--config=configs/conic.py', '--config.data.name=imagenet2013'], r'imagenet2012'),
  (['--config=configs/conic.py:cifar10', '--config.data.dir=/no/such'], r'tfds build cifar10'),
  (['--config=configs/conic.py:photos', '--config.method=moko'], r"'moko'; available: align_uniform, byol"),
  (['--config=configs/conic.py:photos', '--config.encoder.name=resnet9'], r'resnet9.*resnet18'),
  (['--config=configs/conic.py:photos', '--config.task=dance'], r'available: pretrain, knn, linear'),
  (['--config=configs/knn.py'], r'Which encoder\? --config\.encoder=RUN'),
  (['--config=configs/knn.py', '--config.encoder=docs'], r"'docs' is no run"),
  (['--config=configs/linear.py', '--config.encoder=random'], r'give a preset of configs/linear\.py'),
])
def test_a_mistake_is_answered_in_one_line(arguments, answer, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setattr(sys, 'argv', ['conic_jax', *arguments])
  with pytest.raises(SystemExit) as exit:
    main.command()
  assert str(exit.value).startswith('conic_jax: ')
  assert len(str(exit.value).splitlines()) == 1
  assert re.search(answer, str(exit.value)), exit.value


def test_help_prints_every_field_with_its_value_range_and_meaning(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['conic_jax', '--config=configs/conic.py:photos', '--help'])
  main.command()
  shown = capsys.readouterr().out
  size = r'^--config\.views\.size=\d+ +whole number, at least 1 +pixels per side$'
  assert re.search(size, shown, re.MULTILINE)
  optimizer = r"^--config\.optimizer\.name='sgd' +sgd \| lars \| adamw +the optimizer$"
  assert re.search(optimizer, shown, re.MULTILINE)
  assert re.search(r'^  --lost_after +Seconds', shown, re.MULTILINE)
  monkeypatch.setattr(sys, 'argv', ['conic_jax', '--help'])
  main.command()
  shown = capsys.readouterr().out
  assert 'configs/conic.py' in shown
  assert 'Add --config=FILE[:PRESET] to see all fields' in shown


def test_a_mistake_prints_no_traceback_and_fails():
  code, out, err = finish(start('--config=configs/conic.py:foto'))
  assert (code, out) == (1, '')
  assert err.startswith("conic_jax: There is no preset 'foto'")
  assert len(err.splitlines()) == 1


def test_a_full_disk_from_the_start_is_one_line(tiny_config):
  limit = ('bash', '-c', 'ulimit -f 0; trap "" XFSZ; exec "$@"', 'bash')
  code, _, err = finish(start(*flags_of(tiny_config), prefix=limit))
  assert code == 1
  assert re.fullmatch('conic_jax: There is no folder that temporary files can be written to: .*\n', err), err


# ---- Ends and resumes -------------------------------------------------------------------------


@pytest.mark.parametrize('method', ['conic', 'conic_s'])
def test_after_kill_9_the_losses_are_those_of_an_undisturbed_run(here, long_config, tmp_path, method):
  """ConIC-S with its rows on disk: store and checkpoint agree whatever was being written."""
  if method == 'conic_s':
    tiny_method(long_config, method, **{'classifier.store': 'disk'})
  run = Path(long_config.run)
  process = start(*flags_of(long_config), devices=8)
  wait_for(process, lambda: len(list(run.glob('checkpoints/[0-9]*'))) > 0
           and (run / 'metrics.jsonl').read_text().count('\n') > 8)
  process.kill()
  process.communicate()
  killed_at = max(losses_by_step(run))
  assert killed_at < 60
  long_config.max_steps = min(killed_at + 4, 60)
  out = here(*flags_of(long_config))
  assert (resumed := int(re.search(r'going on from step (\d+)', out).group(1))) > 0
  assert resumed <= killed_at
  undisturbed = long_config.copy_and_resolve_references()
  undisturbed.run = str(tmp_path / 'undisturbed')
  here(*flags_of(undisturbed))
  assert len(losses := losses_by_step(run)) == long_config.max_steps
  assert losses == losses_by_step(undisturbed.run)


def flip_a_byte_of_each_row(path, record_size):
  rows = np.fromfile(path, np.uint8).reshape(-1, record_size)
  rows[rows.any(axis=1), -1] ^= 1
  rows.tofile(path)


def flip_the_byte(path, position):
  data = bytearray(path.read_bytes())
  data[position] ^= 1
  path.write_bytes(data)


def test_a_damaged_store_is_told_and_left_as_it_is(here, long_config, tmp_path):
  """The rows of ConIC-S on disk, its rates and the settings of its store."""
  tiny_method(long_config, 'conic_s', **{'classifier.store': 'disk', 'max_steps': 7})
  here(*flags_of(long_config))
  run, whole = Path(long_config.run), tmp_path / 'whole'
  shutil.copytree(run, whole)
  long_config.max_steps = 0
  size = 12 + 8 * long_config.head.features
  for name, damage, answer in (
    ('process-0/rows', lambda path: flip_a_byte_of_each_row(path, size),
     r'rows or its checksums are damaged at instance \d+: (move|run|bring) '),
    ('rates-0', lambda path: flip_the_byte(path, 9),
     r'rates-0 or its checksums are damaged at step 2: bring '),
    ('settings.json', lambda path: path.write_text('{"norm'), r'settings\.json is damaged: bring ')):
    shutil.rmtree(run)
    shutil.copytree(whole, run)
    damage(run / 'store' / name)
    before = kept_by(run)
    with pytest.raises(SystemExit) as exit:
      here(*flags_of(long_config))
    assert str(exit.value).startswith('conic_jax: ')
    assert len(str(exit.value).splitlines()) == 1
    assert re.search(answer, str(exit.value))
    assert kept_by(run) == before


def kept_by(run):
  """The content of a run's store and of its checkpoints."""
  return {path: path.read_bytes() for folder in ('store', 'checkpoints')
          for path in (run / folder).rglob('*') if path.is_file()}


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(long_config, number):
  long_config.checkpoint.every_epochs = 1000.0
  run = Path(long_config.run)
  process = start(*flags_of(long_config))
  wait_for(process, lambda: (run / 'metrics.jsonl').exists()
           and (run / 'metrics.jsonl').read_text().count('\n') > 4)
  process.send_signal(number)
  code, _, err = finish(process)
  assert code == 128 + number
  step = max(losses_by_step(run))
  assert f'{number.name}: stopped at step {step}; saved {run}/checkpoints/{step}. Run the same command' in err
  assert (run / 'checkpoints' / str(step)).is_dir()


def test_a_full_disk_while_saving_does_not_stop_the_training(here, long_config):
  """A limit on the size of files stands for the full disk: every large write fails."""
  long_config.epochs, long_config.max_steps, long_config.head.features = 2, 3, 8
  here(*flags_of(long_config))
  long_config.max_steps = 0
  limit = 'import resource, signal, sys, os; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); ' \
          'resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)); os.execv(sys.argv[1], sys.argv[1:])'
  limited = start(*flags_of(long_config), devices=8, prefix=(sys.executable, '-c', limit))
  code, out, err = finish(limited)
  assert code == 1
  assert 'step 6/6' in out
  told = [line for line in err.splitlines() if line.startswith('conic_jax: ')]
  assert len(told) == 1
  assert 'not all of it could be saved' in told[0]
  assert f'the last good checkpoint is {long_config.run}/checkpoints/3.' in told[0]


# ---- Several processes ------------------------------------------------------------------------


def finish_pair(*arguments):
  """Runs the command in a cluster of two processes with four devices each."""
  with reserved_port() as port:
    pair = [fork([*COMMAND[1:], *arguments, f'--coordinator=127.0.0.1:{port}', '--num_processes=2',
                  f'--process_id={index}'], XLA_FLAGS=xla_flags(4)) for index in (0, 1)]
    for process in pair:
      code, _, err = finish(process)
      assert code == 0, err


@pytest.mark.parametrize(('method', 'changes'), [('conic_s', {'classifier.store': 'disk'}), ('inscon', {})])
def test_two_processes_learn_what_one_does(here, tiny_config, tmp_path, method, changes):
  tiny_method(tiny_config, method, **changes)
  tiny_config.probe.images, tiny_config.eval.linear, tiny_config.knn_every = 16, False, 2
  alone = tiny_config.copy_and_resolve_references()
  tiny_config.figures = method == 'conic_s'
  alone.run = str(tmp_path / 'alone')
  here(*flags_of(alone))
  finish_pair(*flags_of(tiny_config))
  together, lonely = losses_by_step(tiny_config.run), losses_by_step(alone.run)
  assert together.keys() == lonely.keys()
  for step, loss in together.items():
    assert abs(loss - lonely[step]) < 1e-4 * abs(lonely[step]), step
  summaries = [json.loads((Path(c.run) / 'summary.json').read_text()) for c in (tiny_config, alone)]
  assert summaries[0]['knn_top1'] == pytest.approx(summaries[1]['knn_top1'], abs=0.13)
  first = [reports_of(config.run)[0] for config in (tiny_config, alone)]
  assert first[0] == pytest.approx(first[1], rel=1e-3)
  assert all('verdict' in summary for summary in summaries)
  if method == 'conic_s':  # What one evaluation shows of two processes holds for every method.
    finish_pair('--config=configs/knn.py', f'--config.encoder={tiny_config.run}')
    figures = json.loads((Path(tiny_config.run) / 'knn.json').read_text())
    assert figures['knn_top1'] == summaries[0]['knn_top1']


# ---- Evaluation of a run ----------------------------------------------------------------------


def test_knn_and_linear_of_a_run(here, tiny_config):
  run = Path(tiny_config.run)
  here(*flags_of(tiny_config))
  summary = json.loads((run / 'summary.json').read_text())
  for task in ('knn', 'linear'):
    out = here(f'--config=configs/{task}.py', f'--config.encoder={run}')
    figures = json.loads((run / f'{task}.json').read_text())
    assert figures[f'{task}_top1'] == summary[f'{task}_top1']
    assert f'Written to {run}/{task}.json' in out
