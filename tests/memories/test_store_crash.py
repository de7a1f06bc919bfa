"""The stores over deaths of the process and of the machine, at any moment, against a plain dict."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from old_store import as_version_1

from conic_jax.memories.store import Layout, open_store

LAYOUT = Layout(num_instances=9, dim=2, seed=0)
IDS = np.arange(LAYOUT.num_instances)
KINDS = pytest.mark.parametrize('kind', ['host', 'disk'])


class Died(BaseException):
  """The process or the machine died here."""


class Machine:
  """Calls to the system that end in death at a moment drawn in advance, halfway through a write.

  When the machine loses its power, of what was not brought to the disk any part may be lost: of each
  place that was written in a file any of its contents since then may be there, and of what was appended
  any length, its end zeros.
  """
  CALLS = ('pwrite', 'fsync', 'replace', 'unlink', 'ftruncate')

  def __init__(self, rng, monkeypatch):
    self.rng, self.monkeypatch, self.left = rng, monkeypatch, None
    self.real = {name: getattr(os, name) for name in self.CALLS}
    self.written = {}  # By file: the end that is safe, and the contents of places since then.

  def run(self, action, calls):
    """Runs an action that dies at its call number `calls`; whether it lived."""
    self.left = calls
    with self.monkeypatch.context() as patch:
      for name in self.CALLS:
        patch.setattr(os, name, getattr(self, name))
      try:
        action()
      except Died:
        return False
    return True

  def dies(self):
    self.left -= 1
    return self.left < 0

  def pwrite(self, file, data, offset):
    if dies := self.dies():
      data = data[:self.rng.integers(len(data))]
    end, places = self.written.setdefault(os.fstat(file).st_ino, (os.fstat(file).st_size, {}))
    if offset < end:
      places.setdefault(offset, [os.pread(file, len(data), offset)]).append(bytes(data))
    written = self.real['pwrite'](file, data, offset)
    if dies:
      raise Died
    return written

  def fsync(self, file):
    if self.dies():
      raise Died
    self.written.pop(os.fstat(file).st_ino, None)

  def ftruncate(self, file, length):
    if self.dies():
      raise Died
    self.real['ftruncate'](file, length)

  def replace(self, source, target):
    if self.dies():
      raise Died
    self.forget(target)
    self.real['replace'](source, target)

  def unlink(self, path):
    if self.dies():
      raise Died
    self.forget(path)
    self.real['unlink'](path)

  def forget(self, path):
    if os.path.exists(path):
      self.written.pop(os.stat(path).st_ino, None)

  def lose_power(self, folder):
    for path in folder.iterdir():
      safe, places = self.written.pop(path.stat().st_ino, (None, {}))
      if safe is None:
        continue
      size = path.stat().st_size
      with open(path, 'r+b') as file:
        for offset, contents in places.items():
          content = contents[self.rng.integers(len(contents))]
          longest = max(map(len, contents))
          file.seek(offset)
          whole = content + file.read(longest)[len(content):]
          file.seek(offset)
          file.write(whole)
        if size > safe:
          file.truncate(self.rng.integers(safe, size + 1))
          file.truncate(self.rng.integers(file.seek(0, 2), size + 1))


def rows_at(step, ids):
  return np.float32(step) + np.arange(len(ids) * 4, dtype=np.float32).reshape(-1, 2, 2) / 64


def read(store):
  """What the store holds, as {id: (seen, row)}."""
  rows, seen, written = store.read(IDS)
  return {int(id): (int(seen[id]), rows[id].tolist()) for id in IDS if written[id]}


def assert_checksums_agree(store):
  """What both files say of each record, after the store was opened or has recorded a checkpoint."""
  if store.kind == 'disk':
    record = np.dtype([('crc', '<u4'), ('time', '<i8'), ('row', '<f4', (2, LAYOUT.dim))])
    rows, sums = (np.fromfile(store.folder / name, dtype)
                  for name, dtype in (('rows', record), ('rows.sums', '<u4')))
    np.testing.assert_array_equal(sums, rows['crc'])


class Run:
  """A store, what it should hold, and the checkpoints of the run."""

  def __init__(self, kind, folder, rng, machine, power):
    self.kind, self.folder, self.rng, self.machine, self.power = kind, folder, rng, machine, power
    self.step, self.holds, self.checkpoints = 0, {}, {}
    self.store = open_store(kind, folder, LAYOUT)

  def dies_in(self, action):
    calls = int(2 ** self.rng.uniform(0, 7)) - 1 if self.rng.random() < 0.5 else 10**9
    return not self.machine.run(action, calls)

  def write(self):
    ids = self.rng.choice(IDS, self.rng.integers(5), replace=False)
    rows = rows_at(self.step, ids)
    if self.dies_in(lambda: self.store.write(ids, rows, np.full(len(ids), self.step))):
      self.begin_again()
      return
    self.holds |= {int(id): (self.step, row.tolist()) for id, row in zip(ids, rows, strict=True)}
    self.step += 1

  def checkpoint(self):
    if self.checkpoints and max(self.checkpoints) == self.step:
      return
    if self.dies_in(lambda: self.store.checkpoint(self.step, list(self.checkpoints))):
      self.begin_again()
      return
    assert_checksums_agree(self.store)
    if self.rng.random() < 0.8:  # Else the save of the state fails, after that of the store.
      self.checkpoints[self.step] = dict(self.holds)
      if len(self.checkpoints) > 3:
        del self.checkpoints[min(self.checkpoints)]

  def begin_again(self):
    """Goes on from a checkpoint, the last one mostly; this may be interrupted too."""
    while True:
      if self.power:
        self.machine.lose_power(self.store.folder)
      step = None
      if self.checkpoints:
        step = max(self.checkpoints) if self.rng.random() < 0.6 else min(self.checkpoints)
        self.checkpoints = {at: holds for at, holds in self.checkpoints.items() if at <= step}
      opened = []
      if not self.dies_in(lambda step=step, opened=opened: opened.append(
          open_store(self.kind, self.folder, LAYOUT, step))):
        break
    self.store, self.step = opened[0], step or 0
    self.holds = dict(self.checkpoints[step]) if step is not None else {}
    assert_checksums_agree(self.store)
    assert read(self.store) == self.holds


@KINDS
@pytest.mark.parametrize('power', [False, True], ids=['killed', 'power lost'])
@pytest.mark.parametrize('seed', range(15))
def test_every_checkpoint_survives_death_at_any_moment(kind, power, seed, tmp_path, monkeypatch):
  rng = np.random.default_rng([seed, power])
  run = Run(kind, tmp_path, rng, Machine(rng, monkeypatch), power)
  for _ in range(60):
    if (action := rng.random()) < 0.6:
      run.write()
    elif action < 0.9:
      run.checkpoint()
    else:
      run.begin_again()
    assert read(run.store) == run.holds


def prepared(kind, folder):
  """A store with checkpoints at 1, 2, 3 and 4, no row written between the first two, and what they hold."""
  store, holds, checkpoints = open_store(kind, folder, LAYOUT), {}, {}
  for step, ids in enumerate([[0, 1, 8], [], [1, 2, 3], [2, 3, 4], [3, 4, 5]]):
    if step:
      store.checkpoint(step, list(checkpoints))
      checkpoints[step] = dict(holds)
    rows = rows_at(step, ids)
    store.write(np.array(ids, np.int64), rows, np.full(len(ids), step))
    holds |= {id: (step, row.tolist()) for id, row in zip(ids, rows, strict=True)}
  return store, checkpoints


@KINDS
@pytest.mark.parametrize('power', [False, True], ids=['killed', 'power lost'])
@pytest.mark.parametrize(('interrupted', 'back_to'), [
  *((interrupted, back_to) for interrupted in ('write', 'checkpoint', 'restore to 4')
    for back_to in (1, 2, 3, 4)), ('restore to 1', 1)])
def test_death_at_every_call(kind, power, interrupted, back_to, tmp_path, monkeypatch):
  """An action is interrupted at its first call to the system, at its second, and so on to its last."""
  calls, lived = 0, False
  while not lived:
    folder = tmp_path / str(calls)
    machine = Machine(np.random.default_rng(calls), monkeypatch)
    opened = []
    machine.run(lambda folder=folder, opened=opened: opened.extend(prepared(kind, folder)), 10**9)
    store, checkpoints = opened
    if interrupted == 'write':
      action = lambda store=store: store.write(np.array([1, 4, 7]), rows_at(9, [1, 4, 7]), np.full(3, 9))
    elif interrupted == 'checkpoint':
      action = lambda store=store: store.checkpoint(9, [1, 2, 3, 4])
    else:
      store.close()
      action = lambda folder=folder: open_store(kind, folder, LAYOUT, int(interrupted[-1]))
    lived = machine.run(action, calls)
    if power:
      machine.lose_power(store.folder)
    store = open_store(kind, folder, LAYOUT, back_to)
    assert_checksums_agree(store)
    assert read(store) == checkpoints[back_to]
    calls += 1
  assert calls > 1 or kind == 'host'


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize('power', [False, True], ids=['killed', 'power lost'])
@pytest.mark.parametrize(('back_to', 'then'), [(4, 1), (2, 2)])
def test_a_store_of_version_1_gets_its_checksums_over_deaths(kind, power, back_to, then, tmp_path,
                                                             monkeypatch):
  store, checkpoints = prepared(kind, tmp_path / 'old')
  store.close()
  as_version_1(store)
  place = store.folder.relative_to(tmp_path / 'old')
  calls, lived = 0, False
  while not lived:
    folder = shutil.copytree(tmp_path / 'old', tmp_path / str(calls))
    machine = Machine(np.random.default_rng(calls), monkeypatch)
    lived = machine.run(lambda folder=folder: open_store(kind, folder, LAYOUT, back_to), calls)
    if power:
      machine.lose_power(folder / place)
    for step in (back_to, then):
      store = open_store(kind, folder, LAYOUT, step)
      assert_checksums_agree(store)
      assert read(store) == checkpoints[step]
      store.close()
    assert json.loads((store.folder / 'store.json').read_text())['version'] == 2
    calls += 1
  assert calls > 3


WRITER = """
import sys
from pathlib import Path
import numpy as np
from conic_jax.memories.store import Layout, open_store

kind, folder, start = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
checkpoints = folder / 'checkpoints'
checkpoints.mkdir(exist_ok=True)
store = open_store(kind, folder, Layout(num_instances=300, dim=4, seed=0), start or None)
print('ready', flush=True)
for step in range(start, 10**9):
  rng = np.random.default_rng(step)
  ids = rng.choice(300, 20, replace=False)
  store.write(ids, rng.normal(size=(20, 2, 4)).astype(np.float32), np.full(20, step))
  if (step + 1) % 7 == 0:
    kept = sorted(int(path.name) for path in checkpoints.iterdir())
    store.checkpoint(step + 1, kept)
    (checkpoints / str(step + 1)).touch()
    for old in kept[:-1]:
      (checkpoints / str(old)).unlink()
"""


def expected_at(step):
  rows, seen, written = np.zeros((300, 2, 4), np.float32), np.zeros(300, np.int64), np.zeros(300, bool)
  for done in range(step):
    rng = np.random.default_rng(done)
    ids = rng.choice(300, 20, replace=False)
    rows[ids], seen[ids], written[ids] = rng.normal(size=(20, 2, 4)), done, True
  return rows, seen, written


@pytest.mark.slow
@KINDS
def test_checkpoints_survive_kill_9(kind, tmp_path):
  checkpoints, start, rng = tmp_path / 'checkpoints', 0, np.random.default_rng(0)
  for _ in range(5):
    writer = subprocess.Popen([sys.executable, '-c', WRITER, kind, str(tmp_path), str(start)],
                              cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == 'ready\n'
    time.sleep(rng.uniform(0.02, 0.3))
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    for start in sorted((int(path.name) for path in checkpoints.iterdir()), reverse=True):
      store = open_store(kind, tmp_path, Layout(num_instances=300, dim=4, seed=0), start)
      for actual, expected in zip(store.read(np.arange(300)), expected_at(start), strict=True):
        np.testing.assert_array_equal(actual, expected)
      store.close()
    for newer in checkpoints.iterdir():
      if int(newer.name) > start:
        newer.unlink()
  assert start > 0
