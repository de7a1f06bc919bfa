"""Tiny runs of every method in processes of their own, for `benchmarks.soak`."""
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from conic_jax.run.checkpoints import restore_model

STEPS, SECONDS, LOST_AFTER = 90, 240, 15
COMMON = {
  'data.name': 'folder', 'data.train': '', 'data.test': '', 'epochs': 15, 'batch_size': 16, 'log_every': 1,
  'views.size': 16, 'eval.resize': 16, 'encoder.name': 'resnet18', 'encoder.stem': 'cifar',
  'encoder.blocks': '(1,)', 'encoder.width': 0.125, 'head.hidden': 16, 'head.features': 8, 'probe.images': 0,
  'knn_every': 0, 'eval.knn': False, 'eval.linear': False, 'eval.baselines': False,
  'figures': False, 'checkpoint.every_epochs': 1.0, 'dtype': 'float32'}
_QUEUE = {'queue.size': 48, 'batch_norm.groups': 8}
METHODS = {
  'conic': ('conic', {}),
  'conic_s, rows on disk': ('conic_s', {'classifier.store': 'disk', 'classifier.window': 24}),
  'conic_s, rows in memory': ('conic_s', {'classifier.store': 'host', 'classifier.window': 24}),
  'one_million': ('one_million', {'smoothing.k': 5}), 'pic': ('pic', {'classifier.window': 24}),
  'exemplar': ('exemplar', {}), 'moco': ('moco_v2', _QUEUE), 'co2': ('co2_moco_v2', _QUEUE),
  'inscon': ('inscon', {**_QUEUE, 'batch_norm.groups': 2, 'head.norm': False, 'cell.hidden': 16,
                        'cell.features': 8, 'cell.queue': 150}),
  'byol': ('byol', {'predictor.hidden': 16}), 'simclr': ('simclr', {}),
  'instdisc': ('instdisc', {'loss.noise': 12}), 'align_uniform': ('align_uniform', _QUEUE)}
# The wall clock jumps by up to a year in both directions, twenty times a second.
_JUMPING_CLOCK = '''
import random, runpy, sys, threading, time
true, offset = time.time, [0.0]
def jump():
  while True:
    time.sleep(0.05)
    offset[0] = random.choice((0.0, 3.0, -3.0, 86400.0, -86400.0, 3.2e7, -3.2e7))
time.time = lambda: true() + offset[0]
threading.Thread(target=jump, daemon=True).start()
sys.argv = sys.argv[1:]
runpy.run_module('conic_jax.main', run_name='__main__', alter_sys=True)
'''
_SMALL_FILES = ('import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
                'resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); '
                'os.execv(sys.argv[2], sys.argv[2:])')


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a process ended: None as a code is a hang; `told` is its last line on stderr."""
  code: int | None
  told: str
  traceback: bool


@dataclasses.dataclass(frozen=True)
class Command:
  """The command that starts a run, and goes on with it.

  Attributes:
    root: where images, compiled programs and runs are.
    method: a name in `METHODS`.
    run: folder of the run.
    processes: how many share the devices.
    devices: how many devices in all.
    changes: other settings than those in `COMMON` and `METHODS`, by name.
  """
  root: Path
  method: str
  run: Path
  processes: int = 1
  devices: int = 2
  changes: tuple[tuple[str, Any], ...] = ()

  def start(self, file_size: int | None = None, jumping_clock: bool = False, output: Path | None = None
            ) -> list[subprocess.Popen]:
    """Starts it: with a limit on the size of files in bytes, or with a clock that jumps.

    Args:
      file_size: the limit.
      jumping_clock: whether the clock jumps.
      output: the file that standard output of one process alone goes to; None to drop it.
    """
    config, own = METHODS[self.method]
    fields = {**COMMON, **own, 'run': self.run, 'data.dir': self.root / 'images', **dict(self.changes)}
    main = ['-c', _JUMPING_CLOCK, 'conic_jax.main'] if jumping_clock else ['-m', 'conic_jax.main']
    command = [sys.executable, *main, f'--config=configs/{config}.py:photos',
               *(f'--config.{name}={value}' for name, value in fields.items())]
    if file_size is not None:
      command = [sys.executable, '-c', _SMALL_FILES, str(file_size), *command]
    if self.processes == 1:
      return [self._open(command, output)]
    cluster = [f'--coordinator=localhost:{_free_port()}', f'--num_processes={self.processes}',
               f'--lost_after={LOST_AFTER}']
    return [self._open([*command, *cluster, f'--process_id={index}']) for index in range(self.processes)]

  def _open(self, command: list[str], output: Path | None = None) -> subprocess.Popen:
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3',
                   'JAX_COMPILATION_CACHE_DIR': str(self.root / 'compiled'),
                   'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
                   'XLA_FLAGS': f'--xla_force_host_platform_device_count={self.devices // self.processes} '
                                '--xla_backend_optimization_level=0'}
    with contextlib.ExitStack() as stack:
      stdout = stack.enter_context(output.open('w')) if output else subprocess.DEVNULL
      return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, errors='replace',
                              env=environment)

  def await_step(self, processes: list[subprocess.Popen], step: int) -> None:
    """Waits until the run has reported a step, or a process has ended."""
    end = time.monotonic() + SECONDS
    while (all(process.poll() is None for process in processes) and time.monotonic() < end
           and max(reports(self.run), default=0) < step):
      time.sleep(0.02)


def await_handlers(process: subprocess.Popen) -> None:
  """Waits until a process heeds SIGTERM, or has ended: before, Python itself begins and answers for it."""
  status, end = Path(f'/proc/{process.pid}/status'), time.monotonic() + SECONDS
  while process.poll() is None and time.monotonic() < end:
    with contextlib.suppress(OSError):
      caught = re.search(r'^SigCgt:\s*(\w+)', status.read_text(), re.MULTILINE)
      if caught is None or int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
        return
    time.sleep(0.01)


def heed_signals() -> None:
  """Lets children heed SIGINT and SIGHUP, which shells and nohup ignore in the background."""
  signal.signal(signal.SIGINT, signal.default_int_handler)
  signal.signal(signal.SIGHUP, lambda *_: None)


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def ended(process: subprocess.Popen) -> Ended:
  """Waits for a process."""
  try:
    _, errors = process.communicate(timeout=SECONDS)
    code = process.returncode
  except subprocess.TimeoutExpired:
    process.kill()
    _, errors = process.communicate()
    code = None
  return Ended(code, errors.strip().rpartition('\n')[2], 'Traceback' in errors)


def reports(run: Path) -> dict[int, float]:
  """The losses of a run by step, as far as they can be read."""
  losses = {}
  with contextlib.suppress(OSError):
    for line in (run / 'metrics.jsonl').read_text(errors='replace').splitlines():
      with contextlib.suppress(ValueError, TypeError, KeyError):
        report = json.loads(line)
        losses[report['step']] = report['loss']
  return losses


def weights(run: Path) -> str:
  """A hash of a finished run's weights."""
  found = hashlib.sha256()
  for leaf in jax.tree.leaves(restore_model(run)):
    found.update(np.ascontiguousarray(leaf).tobytes())
  return found.hexdigest()


def draw_images(root: Path) -> None:
  """Draws the images, once."""
  rng = np.random.default_rng(0)
  for index in range(96):
    path = root / 'images' / 'ab'[index % 2] / f'{index:02d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)


def undisturbed(root: Path, method: str, processes: int, devices: int) -> Path:
  """The folder of a run that nothing happened to, made if it is not there yet."""
  run = root / 'undisturbed' / f'{method}, {processes} of {devices}'
  if not (run / 'summary.json').exists():
    command = Command(root, method, run, processes, devices)
    for process in command.start():
      outcome = ended(process)
      if outcome.code:
        raise SystemExit(f'The undisturbed run of {method} failed: {outcome.told}')
  return run

