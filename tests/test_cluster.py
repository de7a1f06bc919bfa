"""Clusters whose processes are killed, stopped, signalled or started wrongly: real processes and signals."""
import contextlib
import os
import re
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from clusters import assert_one_sentence, ended, finish, fork, pretraining, start, wait_for
from support import reserved_port

from conic_jax import main
from conic_jax.ending import SecondSignal
from conic_jax.hardware.place import find_place
from conic_jax.hardware.watch import LOST
from conic_jax.run.whole import steps_in

PROCESS = Path(__file__).parent / 'cluster_process.py'
# Long enough for a busy machine, short enough for a test.
LOST_AFTER = 6


@contextlib.contextmanager
def cluster(folder, count=2, lost_after=LOST_AFTER, hung_after=0):
  """Processes that exchange numbers with each other, once all of them do."""
  with reserved_port() as port, ended([
      fork([PROCESS, f'127.0.0.1:{port}', count, index, folder, lost_after, 120, hung_after])
      for index in range(count)
  ]) as processes:
    wait_for(processes, lambda: all((folder / f'count-{index}').exists() for index in range(count)))
    yield processes


def listens(port):
  with socket.socket() as probe:
    return probe.connect_ex(('127.0.0.1', port)) == 0


# ---- Lost processes ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('lost', [0, 2])
def test_the_others_say_which_process_was_killed_and_end(tmp_path, lost):
  with cluster(tmp_path, count=3) as processes:
    processes[lost].kill()
    for index in {0, 1, 2} - {lost}:
      assert_one_sentence(processes[index], LOST, (
        rf'^conic_jax: Process {lost} of 3 on \S+ is gone: .*\(since \d\d:\d\d:\d\d\)\. The last good '
        r'checkpoint is run/checkpoints/7\. Start all processes again with the same command'))


@pytest.mark.slow
@pytest.mark.parametrize('stopped', [0, 1])
def test_a_stopped_process_is_lost_and_ends_when_it_wakes(tmp_path, stopped):
  with cluster(tmp_path) as processes:
    processes[stopped].send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    assert_one_sentence(processes[1 - stopped], LOST,
                        rf'^conic_jax: Process {stopped} of 2 on \S+ has been silent for \d+ s')
    assert time.monotonic() - begun > LOST_AFTER / 2
    processes[stopped].send_signal(signal.SIGCONT)
    assert_one_sentence(processes[stopped], LOST, (
      rf'This process, {stopped} of 2, was stopped or cut off for \d+ s, and the others have ended'))


@pytest.mark.slow
def test_a_process_that_was_stopped_for_a_moment_goes_on(tmp_path):
  with cluster(tmp_path, lost_after=30) as processes:
    processes[1].send_signal(signal.SIGSTOP)
    time.sleep(2)
    processes[1].send_signal(signal.SIGCONT)
    (tmp_path / 'end').touch()
    for process in processes:
      assert finish(process) == (0, '', '')


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_others(tmp_path):
  with cluster(tmp_path, count=3) as processes:
    (tmp_path / 'fail').touch()
    assert_one_sentence(processes[1], 1, r'^conic_jax: It failed on purpose\.$')
    for index in (0, 2):
      assert_one_sentence(processes[index], 1, '^conic_jax: Process 1 of 3 ended with an error')


@pytest.mark.slow
def test_a_hung_step_ends_all_with_their_stacks(tmp_path):
  """A main thread hangs while its watch still answers: the others hang in a collective."""
  with cluster(tmp_path, count=3, lost_after=60, hung_after=4) as processes:
    (tmp_path / 'hang').touch()
    for index, process in enumerate(processes):
      code, _, err = finish(process)
      assert code == LOST, err
      assert re.search(r'^conic_jax: Process \d of 3 on \S+ did not end a step within 4 s; the stacks .* The '
                       r'last good checkpoint is run/checkpoints/7\. Start', err.splitlines()[-1]), err
      assert ('process_allgather' in err) == (index != 1), err
      assert 'cluster_process.py' in err


# ---- Signals ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_signal_ends_a_process_that_hangs_in_a_collective(tmp_path):
  with cluster(tmp_path, lost_after=300) as processes:
    processes[1].send_signal(signal.SIGSTOP)
    time.sleep(1)
    processes[0].send_signal(signal.SIGINT)
    time.sleep(1)
    assert processes[0].poll() is None
    processes[0].send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert_one_sentence(processes[0], 128 + signal.SIGINT, '^conic_jax: SIGINT again: ended without')
    assert time.monotonic() - begun < 10


WAITS = """
import time
from conic_jax.command_line import guarded
from conic_jax.run.signals import StopRequest
def action():
  with StopRequest() as signals, signals.deferred():
    print('ready', flush=True)
    while not signals.agreed():
      time.sleep(0.01)
    print(signals.agreed().name)
guarded(action)
"""


@pytest.mark.slow
@pytest.mark.parametrize('ignored', [False, True])
def test_sighup_asks_to_stop_unless_it_is_ignored(ignored):
  # Set in any case: under nohup it is ignored, and inherited.
  handler = 'SIG_IGN' if ignored else 'SIG_DFL'
  before = f'import signal; signal.signal(signal.SIGHUP, signal.{handler})\n'
  with ended([start(['-c', before + WAITS])]) as [process]:
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGHUP)
    if ignored:
      time.sleep(0.3)
      assert process.poll() is None
      process.send_signal(signal.SIGTERM)
    told = signal.SIGTERM if ignored else signal.SIGHUP
    # A loop that ends without heeding it is stopped all the same.
    assert finish(process) == (128 + told, f'{told.name}\n', (
      f'conic_jax: {told.name}: stopped after the last step; the checkpoints so far are kept. Run the same '
      'command again to go on.\n'))


def test_signals_are_left_as_they_were():
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  before = signal.set_wakeup_fd(writer)
  try:
    with SecondSignal() as second:
      handler = signal.signal(signal.SIGTERM, lambda *_: None)
      os.kill(os.getpid(), signal.SIGTERM)
      assert os.read(reader, 1) == bytes([signal.SIGTERM])
      signal.signal(signal.SIGTERM, handler)
    assert second.count == 1
    assert signal.set_wakeup_fd(before) == writer
  finally:
    os.close(reader)
    os.close(writer)


def test_other_threads_leave_signals_alone():
  def enter():
    with SecondSignal():
      seen.append(True)
  seen = []
  signal.set_wakeup_fd(-1)  # An event loop of another test may have left its own.
  thread = threading.Thread(target=enter)
  thread.start()
  thread.join()
  assert seen
  assert signal.set_wakeup_fd(-1) == -1


# ---- The start --------------------------------------------------------------------------------


CONFIG = '--config=configs/conic.py:photos'


@pytest.mark.parametrize(('arguments', 'answer'), [
  (['--distributed'], r'finds no cluster in the environment'),
  (['--coordinator=localhost:1234'], r'needs --num_processes and --process_id too'),
  (['--coordinator=localhost:1234', '--num_processes=2'], r'needs --process_id too'),
  (['--coordinator=localhost:1234', '--num_processes=0', '--process_id=0'], r'--num_processes is 0'),
  (['--coordinator=localhost:1234', '--num_processes=2', '--process_id=2'], r'_id is 2: .* from 0 to 1'),
  (['--coordinator=localhost:1234', '--num_processes=2', '--process_id=-1'], r'--process_id is -1'),
  *[([f'--coordinator={wrong}', '--num_processes=2', '--process_id=0'], r'must be HOST:PORT')
    for wrong in ('localhost', 'localhost:', ':1234', 'localhost:http', 'localhost:70000')],
  (['--num_processes=0'], r'need --coordinator'),
  (['--process_id=0'], r'need --coordinator'),
  (['--distributed', '--lost_after=0'], r'lost_after'),
])
def test_a_wrong_cluster_is_answered_in_one_sentence(arguments, answer, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['conic_jax', CONFIG, *arguments])
  with pytest.raises(SystemExit) as exit:
    main.command()
  assert len(str(exit.value).splitlines()) == 1
  assert re.search(answer, str(exit.value)), exit.value


def test_slurm_tells_a_process_its_place(monkeypatch):
  for name, value in {'JOB_ID': '5', 'STEP_NODELIST': 'node[3-4]', 'NTASKS': '2', 'PROCID': '1',
                      'LOCALID': '0'}.items():
    monkeypatch.setenv(f'SLURM_{name}', value)
  place = find_place(None, None, None, 5)
  assert (place.host, place.count, place.index, place.devices) == ('node3', 2, 1, (0,))


def answer_of(command, begin=fork, **environment):
  """What a command says that cannot start."""
  with ended([begin(command, **environment)]) as [process]:
    code, out, err = finish(process)
  assert (code, out) == (1, '')
  return err


@pytest.mark.slow
def test_a_port_in_use(tmp_path):
  with socket.create_server(('127.0.0.1', 0)) as other:
    port = other.getsockname()[1]
    err = answer_of([PROCESS, f'localhost:{port}', 2, 0, tmp_path, 60])
  assert re.fullmatch(rf'conic_jax: Port {port} of this machine is in use by another program: .*\n', err)


@pytest.mark.slow
def test_a_coordinator_that_never_answers(tmp_path):
  with reserved_port() as port:
    err = answer_of([PROCESS, f'127.0.0.1:{port}', 2, 1, tmp_path, 60, 11])
  assert re.fullmatch(rf'Waiting for process 0 at 127.0.0.1:{port} …\nconic_jax: Process 0 did not answer at '
                      rf'127.0.0.1:{port} within 11 s \(.*\): start it, check --coordinator.*\n', err), err


@pytest.mark.slow
def test_another_program_at_the_coordinators_address(tmp_path):
  with socket.create_server(('127.0.0.1', 0)) as other:
    err = answer_of([PROCESS, f'127.0.0.1:{other.getsockname()[1]}', 2, 1, tmp_path, 60, 1])
  assert re.fullmatch(r'conic_jax: What listens at .* does not answer as process 0.*\n', err), err


@pytest.mark.slow
def test_a_process_that_never_comes(tmp_path):
  with reserved_port() as port:
    err = answer_of([PROCESS, f'127.0.0.1:{port}', 3, 0, tmp_path, 60, 1])
  assert re.fullmatch(r'conic_jax: Process 1, process 2 of 3 did not come to 127.* within 1 s.*\n', err), err


@pytest.mark.slow
def test_a_process_that_does_not_fit_the_others(tmp_path):
  with reserved_port() as port, ended([fork([PROCESS, f'127.0.0.1:{port}', 2, 0, tmp_path, 60])]) as [first]:
    wait_for([first], lambda: listens(port))
    err = answer_of([PROCESS, f'127.0.0.1:{port}', 3, 1, tmp_path, 60])
  assert re.fullmatch('conic_jax: Process 1 was started with --num_processes=3, process 0 with 2: .*\n', err)


@pytest.mark.slow
@pytest.mark.parametrize('platform', ['foo', 'cuda'])
def test_a_platform_that_is_not_there(platform):
  err = answer_of(['-m', 'conic_jax.main', CONFIG], start, JAX_PLATFORMS=platform)
  assert re.fullmatch(rf"conic_jax: JAX finds no device for JAX_PLATFORMS='{platform}': .*\n", err), err


# ---- Saves that fail --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_disk_that_one_process_cannot_write_costs_only_saves(tiny_config):
  """Both processes go on without saving, and save again once both can."""
  checkpoints, written = Path(tiny_config.run, 'checkpoints'), Path(tiny_config.run, 'metrics.jsonl')

  def await_steps(processes, count):
    lines = written.read_text().count('\n')
    wait_for(processes, lambda: written.read_text().count('\n') > lines + count)

  tiny_config.epochs, tiny_config.checkpoint.every_epochs = 1000, 3.0  # A save ends before the next begins.
  with pretraining(tiny_config) as processes:
    newest = max(steps_in(checkpoints))
    wait_for(processes, lambda: max(steps_in(checkpoints)) > newest)
    before = resource.prlimit(processes[1].pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    saved = steps_in(checkpoints)
    await_steps(processes, 20)
    assert steps_in(checkpoints) == saved
    resource.prlimit(processes[1].pid, resource.RLIMIT_FSIZE, before)
    wait_for(processes, lambda: max(steps_in(checkpoints)) > max(saved))
    for process in processes:
      process.send_signal(signal.SIGTERM)
    for process in processes:
      code, _, err = finish(process)
      assert code == 128 + signal.SIGTERM
      assert 'Traceback' not in err


FAILS = """
import resource
import sys
from pathlib import Path

from conic_jax.command_line import guarded
from conic_jax.hardware.cluster import joined
from conic_jax.hardware.place import find_place
from conic_jax.run import checkpoints
sys.path.append('tests/run')

def main():
  coordinator, index, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
  place = find_place(coordinator, 2, index, 100)
  with joined(place, 30, 100, lambda: None, print):
    from test_checkpoints import make_state
    from conic_jax.hardware.mesh import make_mesh
    # As those of a pass before the training: an error is told of to whichever saves.
    checkpoints.Checkpoints(folder.with_name('others'), keep=2)
    saved = checkpoints.Checkpoints(folder, keep=2)
    saved.save(make_state(make_mesh(), 1), 1, {})
    saved.wait()
    second = make_state(make_mesh(), 2)
    checkpoints._cannot_write = lambda path, size: None  # It can be written when it is tried …
    if index == int(sys.argv[4]):
      resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))  # … and no more right after.
    saved.save(second, 2, {})
    saved.wait()

guarded(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize('failing', [0, 1])
def test_a_save_that_fails_in_one_process_ends_both(tmp_path, failing):
  with reserved_port() as port, ended([
      fork(['-W', 'ignore', '-c', FAILS, f'localhost:{port}', index, tmp_path / 'saved', failing])
      for index in (0, 1)]) as processes:
    assert_one_sentence(processes[failing], 1, (
      rf'^conic_jax: The checkpoint could not be saved \(.*\); the last good one is {tmp_path}/saved/1\.'),
      None)
    assert_one_sentence(processes[1 - failing], 1, 'ended with an error, and this process cannot go on', None)
