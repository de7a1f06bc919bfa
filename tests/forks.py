"""Processes that run commands of Python, forked from one that has imported the library."""
import atexit
import functools
import json
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Forked:
  """A process, in the words of `subprocess.Popen`: all that differs from one is that the imports are done."""

  def __init__(self, command, environment):
    self.returncode = None
    (self.stdout, out), (self.stderr, err), (self._told, told) = (_pipe() for _ in range(3))
    message = json.dumps({'words': list(map(str, command)), 'environment': environment})
    with out, err, told:
      socket.send_fds(_server(), [message.encode()], [end.fileno() for end in (out, err, told)])
    self.pid = self._hear()

  def _hear(self):
    return struct.unpack('i', self._told.read(4))[0]

  def poll(self):
    """The exit code, None while the process runs."""
    if self.returncode is None and select.select([self._told], [], [], 0)[0]:
      self.returncode = self._hear()
      self._told.close()
    return self.returncode

  def wait(self):
    """Waits until the process has ended."""
    while self.poll() is None:
      select.select([self._told], [], [])
    return self.returncode

  def send_signal(self, number):
    """Sends a signal, unless the process has ended."""
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self):
    """Kills the process."""
    self.send_signal(signal.SIGKILL)

  def communicate(self, timeout=None):
    """What the process said on stdout and on stderr, once it has ended."""
    end = None if timeout is None else time.monotonic() + timeout
    said = {self.stdout: b'', self.stderr: b''}
    with selectors.DefaultSelector() as selector:
      for file in said:
        selector.register(file, selectors.EVENT_READ)
      while selector.get_map():
        ready = selector.select(end and end - time.monotonic())
        if not ready:
          raise subprocess.TimeoutExpired(f'process {self.pid}', timeout)
        for key, _ in ready:
          part = os.read(key.fd, 1 << 16)
          said[key.fileobj] += part
          if not part:
            selector.unregister(key.fileobj)
            key.fileobj.close()
    self.wait()
    return tuple(text.decode() for text in said.values())


def _pipe():
  """Both ends of a pipe, to read and to write."""
  ends = os.pipe()
  return os.fdopen(ends[0], 'rb', buffering=0), os.fdopen(ends[1], 'wb', buffering=0)


@functools.cache
def _server():
  """The socket of a server of this process's own, which ends with it."""
  ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
  # With one thread nothing else can be at work while it forks.
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OPENBLAS_NUM_THREADS': '1'}
  with its:
    server = subprocess.Popen([sys.executable, '-m', 'tests.fork_server', str(its.fileno())], cwd=ROOT,
                              env=environment, pass_fds=[its.fileno()])
  atexit.register(_end, ours, server)
  return ours


def _end(ours, server):
  ours.close()
  server.wait()
