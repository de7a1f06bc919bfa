"""Weights & Biases in its offline mode, read as its own sync reads it; and loggers that fail."""
import json
import os
import socket
import warnings

import pytest
from PIL import Image

from conic_jax.pretraining import training
from conic_jax.run.loggers import Guarded, open_loggers
from conic_jax.run.reporter import Reporter
from conic_jax.run.wandb_log import open_wandb

wandb = pytest.importorskip('wandb')


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
  """No key of the user's, no network, and no files outside of the test."""
  for name in [name for name in os.environ if name.startswith('WANDB_')]:
    monkeypatch.delenv(name)
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv('WANDB_MODE', 'offline')
  yield
  wandb.teardown()


def starts(run):
  """Of each start of a run, oldest first: id, config, reports and summary, from the file that is synced."""
  wandb.teardown()  # The file is whole once its writer has ended, as with a process.
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore
  told = []
  for file in sorted(run.glob('wandb/offline-run-*/run-*.wandb')):
    store, record = DataStore(), Record()
    store.open_for_scan(str(file))
    told.append({'id': '', 'project': '', 'config': {}, 'reports': [], 'summary': {}})
    while data := store.scan_data():
      record.ParseFromString(data)
      loaded = lambda items: {item.key or '/'.join(item.nested_key): json.loads(item.value_json)
                              for item in items}
      if record.run.run_id:
        told[-1].update(id=record.run.run_id, project=record.run.project,
                        config=loaded(record.run.config.update))
      if record.history.item:
        told[-1]['reports'].append(loaded(record.history.item))
      told[-1]['summary'] |= loaded(record.summary.update)
    store.close()
  return told


@pytest.mark.slow
def test_a_run_reports_its_config_and_metrics_and_goes_on_under_its_id(tiny_config, tmp_path):
  tiny_config.log.wandb, tiny_config.max_steps = 'birds', 1
  tiny_config.eval.update(knn=False, linear=False)
  training.pretrain(tiny_config)
  tiny_config.max_steps = 2
  training.pretrain(tiny_config)
  first, second = starts(tmp_path / 'run')
  assert first['project'] == second['project'] == 'birds'
  assert first['id'] == second['id'] == json.loads((tmp_path / 'run/loggers.json').read_text())['wandb']
  assert first['config']['batch_size'] == 16
  assert first['config']['encoder']['name'] == 'resnet18'
  written = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
  both = [report for start in (first, second) for report in start['reports']]
  assert [(report['step'], report['loss']) for report in both if 'loss' in report] == [
    (report['step'], report['loss']) for report in written if 'loss' in report]
  assert second['summary']['num_images'] == 48


def test_pictures_are_logged_at_the_end(tmp_path):
  picture = tmp_path / 'neighbours.png'
  Image.new('RGB', (4, 4)).save(picture)
  opened, = open_loggers({'wandb': ('birds', open_wandb)}, tmp_path, {}, pytest.fail)
  opened.conclude({'knn': 0.5}, [picture])
  opened.close()
  start, = starts(tmp_path)
  report, = start['reports']
  image = tmp_path.glob(f"wandb/offline-run-*/files/{report['figures/neighbours/path']}")
  assert next(image).read_bytes() == picture.read_bytes()


def test_without_a_key_a_run_is_kept_in_its_folder(tmp_path, monkeypatch):
  monkeypatch.delenv('WANDB_MODE')
  said = []
  opened, = open_loggers({'wandb': ('birds', open_wandb)}, tmp_path, {}, said.append)
  opened.report({'step': 1, 'loss': 2.0})
  opened.close()
  assert [report['loss'] for report in starts(tmp_path)[0]['reports']] == [2.0]
  assert len(said) == 1
  assert 'wandb sync' in said[0]


def test_without_a_network_a_run_is_kept_in_its_folder(tmp_path, monkeypatch):
  for name in ('http_proxy', 'HTTP_PROXY'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.delenv('WANDB_MODE')
  monkeypatch.setenv('WANDB_API_KEY', 40 * '0')
  said = []
  with socket.socket() as nobody:
    nobody.bind(('127.0.0.1', 0))
    monkeypatch.setenv('WANDB_BASE_URL', f'http://127.0.0.1:{nobody.getsockname()[1]}')
    opened, = open_loggers({'wandb': ('birds', open_wandb)}, tmp_path, {}, said.append)
  opened.report({'step': 1, 'loss': 2.0})
  opened.close()
  assert [report['loss'] for report in starts(tmp_path)[0]['reports']] == [2.0]
  assert len(said) == 1
  assert 'does not answer' in said[0]


class Broken:
  """A logger whose service is gone."""

  def __init__(self):
    self.asked = 0

  def report(self, report):
    self.asked += 1
    raise ConnectionError('no route\nto the host')

  def conclude(self, summary, pictures):
    self.report(summary)

  def close(self):
    self.report({})


def test_a_logger_that_fails_is_told_once_and_left_alone(tmp_path):
  said, broken = [], Broken()
  reporter = Reporter(tmp_path, first_step=0, total_steps=3)
  reporter.loggers = [Guarded('wandb', broken, said.append)]
  for step in (1, 2):
    reporter.report(step, 0.0, {'loss': 1.0})
  reporter.close()
  reporter.loggers[0].close()
  assert said == ['wandb gets no reports from here on (no route); the training goes on.']
  assert broken.asked == 1
  assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 2


def test_a_logger_that_cannot_be_opened_is_left_out(tmp_path):
  def refuse(*arguments):
    raise ModuleNotFoundError("No module named 'wandb'")
  said = []
  assert open_loggers({'unused': ('', refuse), 'wandb': ('birds', refuse)}, tmp_path, {}, said.append) == []
  assert len(said) == 1
  assert "No module named 'wandb'; pip install 'conic_jax[wandb]' brings it" in said[0]
