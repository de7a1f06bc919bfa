"""Records are appended whole or not at all."""
import resource
import signal

import pytest

from conic_jax.run.appended import Appended


@pytest.fixture
def limit():
  """Limits the size of files, which stands for a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  resource.setrlimit(resource.RLIMIT_FSIZE, before)
  signal.signal(signal.SIGXFSZ, handler)


def test_a_record_that_does_not_fit_leaves_nothing(tmp_path, limit):
  path = tmp_path / 'file'
  path.write_bytes(b'before\n')
  file = Appended(path)
  file.append(b'one\n')
  limit(14)
  with pytest.raises(OSError, match='No space left on device'):
    file.append(b'too long\n')
  assert path.read_bytes() == b'before\none\n'
  file.append(b'2\n')
  limit(resource.RLIM_INFINITY)
  file.append(b'three\n')
  file.close()
  assert path.read_bytes() == b'before\none\n2\nthree\n'


def test_a_torn_record_is_cut_off_by_the_next(tmp_path, limit):
  file = Appended(tmp_path / 'file')
  file.append(b'one\n')
  raw = file._file

  class Failing:
    """A file whose disk fails both to write and to cut back."""
    def write(self, record):
      raw.write(record[:2])
      raise OSError(5, 'Input/output error')
    def truncate(self, end):
      raise OSError(5, 'Input/output error')

  file._file = Failing()
  with pytest.raises(OSError, match='Input/output error'):
    file.append(b'two\n')
  file._file = raw
  assert (tmp_path / 'file').read_bytes() == b'one\ntw'
  file.append(b'three\n')
  assert (tmp_path / 'file').read_bytes() == b'one\nthree\n'
  file.close()
