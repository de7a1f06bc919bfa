"""Forks processes that run commands of Python, with the library imported; argument: FD of a socket.

A message holds a command's words and environment, and brings the files for its output and errors and the pipe
that its process id and then its exit code are written to.
"""
import gc
import importlib
import json
import os
import runpy
import socket
import struct
import sys
import warnings

# What commands import. A fork of a process with threads may hang: these start none.
MODULES = ('jax.experimental.multihost_utils', 'orbax.checkpoint', 'conic_jax.pretraining.training')
LONGEST = 1 << 20


def serve(requests):
  """Forks a process for each message; returns in each, with the words of its command, and None at the end."""
  while True:
    message, files, _, _ = socket.recv_fds(requests, LONGEST, 3)
    while _reap(os.WNOHANG):
      pass
    if not message:
      while _reap(0):
        pass
      return None
    if words := _fork(requests, json.loads(message), *files):
      return words
    for file in files:
      os.close(file)


def _reap(options):
  """Whether a process has ended: their time counts as that of this one, and so of the tests."""
  try:
    return os.waitpid(-1, options)[0]
  except ChildProcessError:
    return 0


def _fork(requests, message, out, err, told):
  """The words of the command in its process, None in this one."""
  if os.fork():
    return None
  requests.close()
  child = os.fork()
  if child:
    os.write(told, struct.pack('i', child))
    os.write(told, struct.pack('i', os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
    os._exit(0)
  os.dup2(out, 1)
  os.dup2(err, 2)
  for file in (out, err, told):
    os.close(file)
  os.environ.clear()
  os.environ.update(message['environment'])
  sys.path[1:1] = os.environ['PYTHONPATH'].split(os.pathsep)
  return message['words']


def run(words):
  """Does what Python does with the words of a command after its name."""
  if words[0] == '-W':
    warnings.simplefilter(words[1])
    words = words[2:]
  if words[0] == '-m':
    sys.argv = words[1:]
    runpy.run_module(words[1], run_name='__main__', alter_sys=True)
  elif words[0] == '-c':
    sys.argv = ['-c', *words[2:]]
    exec(words[1], {'__name__': '__main__'})
  else:
    sys.argv, sys.path[0] = words, os.path.dirname(words[0])
    runpy.run_path(words[0], run_name='__main__')


if __name__ == '__main__':
  for module in MODULES:
    importlib.import_module(module)
  gc.freeze()
  with socket.socket(fileno=int(sys.argv[1])) as listening:
    command = serve(listening)
  if command:
    run(command)
