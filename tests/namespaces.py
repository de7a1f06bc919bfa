"""Two machines in network namespaces, joined by a cable that a test can pull. Needs root."""
import contextlib
import os
import shutil
import socket
import subprocess

import pytest

# Of the two machines: a range that is set aside for tests of networks.
ADDRESSES = ('198.18.77.1', '198.18.77.2')
# Each machine finds its own address under its name, which the machines share.
_ENTER = 'mount --bind "$0" /etc/hosts && exec "$@"'


class Machines:
  """The two machines.

  Attributes:
    enter: for each, the words that start a command on it.
  """

  def __init__(self, names, hosts):
    self._names = names
    self.enter = tuple(('ip', 'netns', 'exec', name, 'sh', '-c', _ENTER, str(file))
                       for name, file in zip(names, hosts, strict=True))

  def pull_the_cable(self):
    """Nothing arrives at either machine any more, and nothing says so."""
    _ip('-n', self._names[1], 'link', 'set', self._names[1], 'down')


@contextlib.contextmanager
def two_machines(folder):
  """The machines; skips the test where they cannot be made.

  Args:
    folder: for their files.
  """
  if os.geteuid() != 0 or not shutil.which('ip'):
    pytest.skip('network namespaces need root and the command ip')
  names = [f'cnc{os.getpid() % 10**6}{end}' for end in 'ab']
  hosts = [folder / f'hosts-{address}' for address in ADDRESSES]
  with contextlib.ExitStack() as stack:
    for name, address, file in zip(names, ADDRESSES, hosts, strict=True):
      file.write_text(f'127.0.0.1 localhost\n{address} {socket.gethostname()}\n')
      try:
        _ip('netns', 'add', name)
      except subprocess.CalledProcessError as error:
        pytest.skip(f'a network namespace cannot be made here: {error.stderr.strip()}')
      stack.callback(_ip, 'netns', 'del', name)
    _connect(names)
    yield Machines(names, hosts)


def _connect(names):
  _ip('link', 'add', names[0], 'netns', names[0], 'type', 'veth', 'peer', 'name', names[1], 'netns', names[1])
  for name, address in zip(names, ADDRESSES, strict=True):
    _ip('-n', name, 'address', 'add', f'{address}/30', 'dev', name)
    for device in ('lo', name):
      _ip('-n', name, 'link', 'set', device, 'up')


def _ip(*arguments):
  subprocess.run(['ip', *arguments], check=True, capture_output=True, text=True)
