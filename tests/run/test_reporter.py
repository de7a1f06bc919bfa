"""Reports: what is written, what a full disk loses, and output that fails."""
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import tensorflow as tf

from conic_jax.errors import UserError
from conic_jax.run.events import crc32c
from conic_jax.run.reporter import Reporter, cut_back
from conic_jax.terminal import encodable, print_line


def reporter(run, first_step=0):
  run.mkdir(exist_ok=True)
  return Reporter(run, first_step=first_step, total_steps=10)


def lines(run):
  return [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]


def events(run):
  """All events of a run, oldest file first; TensorFlow checks their checksums."""
  files = sorted((run / 'tensorboard').iterdir())
  return [event for path in files for event in tf.compat.v1.train.summary_iterator(str(path))]


def scalars(run, name='loss'):
  """What TensorBoard shows of a scalar: a start drops what is of its step and later."""
  shown = []
  for event in events(run):
    if event.session_log.status == tf.compat.v1.SessionLog.START:
      shown = [(step, value) for step, value in shown if step < event.step]
    shown += [(event.step, value.simple_value) for value in event.summary.value if value.tag == name]
  return shown


def test_figures_are_in_both_files_at_once(tmp_path):
  opened = reporter(tmp_path / 'run')
  opened.report(1, 0.5, {'loss': 2.0, 'word': 'learning'})
  assert lines(tmp_path / 'run') == [{'step': 1, 'epoch': 0.5, 'loss': 2.0, 'word': 'learning'}]
  assert scalars(tmp_path / 'run') == [(1, 2.0)]
  word = events(tmp_path / 'run')[-1].summary.value[1]
  assert (word.tag, word.tensor.string_val) == ('word/text_summary', [b'learning'])
  opened.close()


def test_the_checksum_is_castagnolis():
  """Of the catalogue of CRCs, and of RFC 3720's 32 zeros."""
  assert crc32c(b'123456789') == 0xe3069283
  assert crc32c(bytes(32)) == 0x8a9136aa
  assert crc32c(b'') == 0


def test_a_resume_replaces_the_later_reports(tmp_path):
  run = tmp_path / 'run'
  opened = reporter(run)
  for step in range(1, 5):
    opened.report(step, 0.0, {'loss': float(step)})
  opened.close()
  first = next((run / 'tensorboard').iterdir())
  first.rename(first.with_name('events.out.tfevents.1'))  # Of an earlier second.
  opened = reporter(run, first_step=2)
  opened.report(3, 0.0, {'loss': 30.0})
  opened.close()
  assert [(line['step'], line['loss']) for line in lines(run)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
  assert scalars(run) == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_damaged_lines_are_named_and_kept(tmp_path, capsys):
  run = tmp_path / 'run'
  run.mkdir()
  content = b'{"step": 1}\nno json\n[3]\n{"step": "x"}\n\xff\xfe\n{"step": 2}\n{"step": 3'
  (run / 'metrics.jsonl').write_bytes(content)
  reporter(run, first_step=5).close()
  assert lines(run) == [{'step': 1}, {'step': 2}]
  assert (run / 'metrics.damaged.jsonl').read_bytes() == content
  assert 'metrics.jsonl has damaged lines (2, 3, 4, 5), which are left out' in capsys.readouterr().out


def test_a_line_cut_short_by_a_crash_is_no_damage(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n{"ste')
  assert cut_back(path, 5) == ([{'step': 1}], [])
  assert path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize('blocked', ['tensorboard', 'metrics.jsonl'])
def test_files_that_cannot_be_opened_end_the_run_before_its_training(tmp_path, blocked):
  run = tmp_path / 'run'
  run.mkdir()
  if blocked == 'tensorboard':
    (run / blocked).touch()
  else:
    (run / blocked).mkdir()
  with pytest.raises(UserError, match=rf'The reports of .* cannot be written \(.*{blocked}: .*\): free room'):
    reporter(run)


def test_a_full_disk_loses_no_line_of_the_metrics(tmp_path, capsys):
  run = tmp_path / 'run'
  opened = reporter(run)
  opened.report(1, 0.0, {'loss': 1.0})
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
  try:
    opened.report(2, 0.0, {'loss': 2.0})
    opened.report(3, 0.0, {'loss': 3.0})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)
  assert opened.failure == 'No space left on device'
  assert len(lines(run)) == 1
  opened.report(4, 0.0, {'loss': 4.0})
  assert opened.failure is None
  assert [line['loss'] for line in lines(run)] == [1.0, 2.0, 3.0, 4.0]
  assert scalars(run) == [(1, 1.0), (4, 4.0)]
  assert capsys.readouterr().out.count('could not be written') == 1
  opened.close()


def test_a_lost_folder_does_not_stop_the_reports(tmp_path):
  run = tmp_path / 'run'
  opened = reporter(run)
  shutil.rmtree(run)
  opened.report(1, 0.0, {'loss': 1.0})
  opened.close()


@pytest.mark.parametrize('encoding', ['ascii', 'utf-8', 'latin-1'])
def test_characters_that_the_stream_lacks_are_escaped(encoding):
  stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
  print_line('Kätzchen 猫 \udcff', stream)
  stream.seek(0)
  assert stream.read() == encodable('Kätzchen 猫 \udcff', stream) + '\n'
  assert 'chen' in encodable('Kätzchen', stream)


OUTPUT = '''
from conic_jax.terminal import print_line
import sys
for i in range(20_000):
  print_line(f'line {i}')
print_line('reached the end', sys.stderr)
'''


def test_a_reader_that_leaves_does_not_stop_the_command():
  process = subprocess.Popen([sys.executable, '-c', OUTPUT], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  assert process.stdout.readline() == b'line 0\n'
  process.stdout.close()
  assert process.stderr.read() == b'reached the end\n'
  process.stderr.close()
  assert process.wait(60) == 0


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='There is no /dev/full.')
def test_a_log_on_a_full_disk_does_not_stop_the_command():
  with open('/dev/full', 'w') as full:
    done = subprocess.run([sys.executable, '-c', OUTPUT], stdout=full, stderr=subprocess.PIPE, timeout=60)
  assert done.stderr == b'reached the end\n'
  assert done.returncode == 0
