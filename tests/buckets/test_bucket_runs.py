"""Runs in a bucket: pretrained, killed, resumed, evaluated, exported and shown from there alone."""
import contextlib
import functools
import json
import shutil
import sys

import clusters
import pytest
from bucket_servers import amazon
from clusters import wait_for
from support import flags_of, losses_by_step, reserved_port, tiny, tiny_method
from xla_flags import xla_flags

from conic_jax import api, main
from conic_jax.buckets.bucket import open_path
from conic_jax.command_line import load
from conic_jax.embed import command as embed
from conic_jax.evals import standalone
from conic_jax.memories import copied_folder
from conic_jax.pretraining.training import pretrain

pytestmark = pytest.mark.slow


def lasting(config):
  """Makes a config one of 24 steps, saved four times."""
  config.epochs, config.checkpoint.every_epochs = 8, 2.0
  return config


def in_bucket(config, url):
  config.run = f'{url}/run'
  return config


@pytest.fixture(scope='module')
def undisturbed(image_folder, tmp_path_factory):
  """The folder of a run that nothing happens to, and its summary."""
  config = lasting(tiny(image_folder, tmp_path_factory.mktemp('undisturbed') / 'run'))
  return config.run, pretrain(config)


@pytest.fixture(scope='module')
def run_in(known, image_folder, tmp_path_factory):
  """Gives the URL of a run in a bucket of a kind, whose disk was lost in the end, and its summary."""
  @functools.cache
  def trained(kind):
    cache = tmp_path_factory.mktemp('cache')
    config = lasting(tiny(image_folder, f'{kind}://bucket/{cache.name}/run'))
    with pytest.MonkeyPatch.context() as patch:
      patch.setenv('XDG_CACHE_HOME', str(cache))
      summary = pretrain(config)
    shutil.rmtree(cache)  # What counts is in the bucket.
    return config.run, summary
  return trained


def reports_in(url):
  """What a run in a bucket reported."""
  text = (open_path(url, 'test') / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def losses_in(url):
  return {report['step']: report['loss'] for report in reports_in(url) if 'loss' in report}


def start(*arguments, devices=1, **environment):
  """Starts the command."""
  return clusters.fork(['-W', 'ignore', '-m', 'conic_jax.main', *arguments], XLA_FLAGS=xla_flags(devices),
                       **environment)


def test_a_run_in_a_bucket_ends_as_one_in_a_folder_and_is_used_from_there(undisturbed, run_in, bucket,
                                                                          image_folder, monkeypatch, capsys):
  folder, expected = undisturbed
  url, summary = run_in(bucket.partition(':')[0])
  assert summary == expected
  run, remote = api.Run(url), open_path(url, 'test')
  assert losses_in(url) == losses_by_step(folder)
  assert run.summary == summary == json.loads((remote / 'summary.json').read_text())
  assert {path.name for path in remote.iterdir()} >= {
    'checkpoints', 'checksums', 'config.json', 'conic_jax.json', 'images.jsonl.gz', 'metrics.jsonl',
    'tensorboard'}
  assert '.lock' not in {path.name for path in remote.iterdir()}
  assert run.config.run == url

  figures = run.evaluate('knn')
  assert figures == json.loads((remote / 'knn.json').read_text())
  assert run.report() == f'{url}/report.html'
  assert (remote / 'report.html').read_text().startswith('<!')
  run.export('safetensors', f'{bucket}/encoder.safetensors')
  assert api.load(f'{bucket}/encoder.safetensors').num_features == run.encoder().num_features
  monkeypatch.setattr(sys, 'argv', ['embed', url, f'{image_folder}/test', f'--out={bucket}/features.npz'])
  embed()
  assert (open_path(bucket, 'test') / 'features.npz').exists()
  assert f'16 vectors written to {bucket}/features.npz' in capsys.readouterr().out


def test_a_fine_tuning_of_a_run_in_a_bucket_is_kept_there(run_in, tiny_config, google_bucket):
  url, _ = run_in('gs')
  config = load('configs/finetune.py')
  config.update_from_flattened_dict({
    'encoder': url, 'data.name': 'folder', 'data.dir': tiny_config.data.dir,
    'data.train': 'train', 'data.test': 'test', 'finetune.epochs': 1, 'finetune.batch_size': 16,
    'views.size': 16,
    'eval.batch_size': 16, 'eval.resize': 16, 'result': 'tuned'})
  figures = standalone.evaluate(config)
  remote = open_path(url, 'test')
  assert json.loads((remote / 'tuned.json').read_text()) == figures
  assert (remote / 'tuned' / 'config.json').exists()
  assert (remote / 'tuned' / 'checkpoints').is_dir()


def test_after_kill_9_and_the_loss_of_its_disk_a_run_goes_on_to_the_bit(undisturbed, tiny_config, bucket,
                                                                        tmp_path, monkeypatch):
  in_bucket(lasting(tiny_config), bucket)
  tiny_config.eval.knn = tiny_config.eval.linear = False
  process = start(*flags_of(tiny_config), devices=8)
  remote = open_path(tiny_config.run, 'test')
  wait_for([process], lambda: (remote / 'checkpoints' / '6' / 'commit_success.txt').exists())
  process.kill()
  process.communicate()
  shutil.rmtree(tmp_path / 'cache')
  assert (remote / '.lock').exists()  # The process is gone, so nobody waits for it.

  monkeypatch.setattr(sys, 'argv', ['conic_jax', *flags_of(tiny_config)])
  main.command()
  assert losses_in(tiny_config.run) == losses_by_step(undisturbed[0])
  assert sorted(losses_in(tiny_config.run)) == list(range(1, 25))


@contextlib.contextmanager
def pair(config, disks):
  """Two processes of the command, each with a disk of its own."""
  with reserved_port() as port:
    processes = [start(*flags_of(config), f'--coordinator=127.0.0.1:{port}', '--num_processes=2',
                       f'--process_id={index}', XDG_CACHE_HOME=str(disks / f'disk-{index}'))
                 for index in range(2)]
    with clusters.ended(processes):
      yield processes


def test_two_processes_with_disks_of_their_own_share_a_bucket(tiny_config, google_bucket, tmp_path):
  """Both are killed, one disk is lost: ConIC-S, with rows on them, ends as undisturbed, to the bit."""
  tiny_method(tiny_config, 'conic_s', **{'classifier.store': 'disk', 'eval.knn': False, 'eval.linear': False,
                                         'epochs': 6, 'checkpoint.every_epochs': 2.0})
  tiny_config.run = f'{google_bucket}/disturbed'
  remote = open_path(tiny_config.run, 'test')
  with pair(tiny_config, tmp_path / 'disturbed') as processes:
    wait_for(processes, (remote / 'checkpoints' / '6' / 'commit_success.txt').exists)
  shutil.rmtree(tmp_path / 'disturbed' / 'disk-1')
  for run in ('disturbed', 'undisturbed'):
    tiny_config.run = f'{google_bucket}/{run}'
    with pair(tiny_config, tmp_path / run) as processes:
      for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, (out, err)
  losses = losses_in(f'{google_bucket}/disturbed')
  assert losses == losses_in(tiny_config.run)
  assert sorted(losses) == list(range(1, 19))


def test_rows_that_cannot_be_copied_cost_their_checkpoint(tiny_config, google_bucket, monkeypatch, capsys):
  tiny_method(tiny_config, 'conic_s', **{'classifier.store': 'host', 'eval.knn': False, 'eval.linear': False,
                                         'epochs': 3})
  put = copied_folder._put

  def failing(folder, name, content):
    if name.endswith('-6'):
      raise ConnectionError('the network is gone')
    return put(folder, name, content)
  monkeypatch.setattr(copied_folder, '_put', failing)
  summary = pretrain(in_bucket(tiny_config, google_bucket))
  checkpoints = open_path(tiny_config.run, 'test') / 'checkpoints'
  assert sorted(path.name for path in checkpoints.iterdir() if path.name.isdigit()) == ['3', '9']
  assert summary['step'] == 9
  told = [line for line in capsys.readouterr().out.splitlines() if 'could not be saved' in line]
  assert told == [f'A checkpoint could not be saved ({tiny_config.run}/store could not be written '
                  '(the network is gone)): training goes on without it.']


def test_a_network_that_goes_away_costs_checkpoints_and_not_the_training(tiny_config, tmp_path):
  tiny_config.epochs, tiny_config.checkpoint.every_epochs, tiny_config.log_every = 40, 20.0, 10
  tiny_config.eval.knn = tiny_config.eval.linear = False
  tiny_config.run = 's3://bucket/run'
  with amazon(tmp_path) as (server, known):
    process = start(*flags_of(tiny_config), **known, XDG_CACHE_HOME=str(tmp_path / 'cache'),
                    AWS_MAX_ATTEMPTS='1')
    copies = tmp_path / 'cache' / 'conic_jax' / 'buckets'
    wait_for([process], lambda: any(copies.glob('run-*/metrics.jsonl')))
    server.kill()
    out, err = process.communicate(timeout=400)
  assert process.returncode == 1
  assert 'step 120/120' in out
  assert out.count('The reports could not be sent to s3://bucket/run') == 1
  assert 'The training ended, but not all of it could be saved' in err
  assert 'Look at the network and the bucket and run the same command again' in err
  assert 'Traceback' not in err
