"""Eight CPU devices, strict ranks and dtypes, and the mesh."""
import contextlib
import gc
import os
import sys
from pathlib import Path

from xla_flags import xla_flags

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = xla_flags(8)
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
# Many tests compile the same step, some of them in processes of their own: all share what is compiled, as
# does the next run of the tests.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(Path(__file__).resolve().parents[1] / '.compiled'))
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'

import jax
import pytest
from support import tiny, write_images

from conic_jax.hardware import mesh as meshes
from conic_jax.run.session import Session

# PyTorch for GPUs imports it, and beside TensorFlow it ends the process: both bring an LLVM.
sys.modules['triton'] = None

# Tracing makes many objects and keeps most of them: garbage is looked for rarely.
gc.set_threshold(100_000, 20, 100)

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')

# The files that take longest, begun first: no process is left with one of them at the end.
_LONGEST = ('test_command', 'test_all', 'test_training', 'test_bucket_runs', 'test_notebook',
            'test_lost_machines', 'test_gradients', 'test_oracle_sampled', 'test_one_million', 'test_tuning',
            'test_segment', 'test_run', 'test_cluster', 'test_extending', 'test_oracle_conic',
            'test_other_encoders')


def pytest_collection_modifyitems(items):
  """Puts the tests of the longest files first."""
  ranks = {name: rank for rank, name in enumerate(_LONGEST)}
  items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@pytest.fixture(params=[1, 8], ids=['1 device', '8 devices'])
def mesh(request):
  """A mesh over one device and one over eight."""
  return meshes.make_mesh(devices=jax.devices()[:request.param])


@pytest.fixture(scope='session')
def mesh8():
  """A mesh over eight devices."""
  return meshes.make_mesh()


@pytest.fixture
def open_session(tmp_path):
  """Opens sessions, each in a folder of its name, which are closed at the end."""
  with contextlib.ExitStack() as stack:
    yield lambda mesh, name='session', log=lambda line: None: stack.enter_context(
      Session(tmp_path / name, mesh, log))


@pytest.fixture(scope='session')
def image_folder(tmp_path_factory):
  """The images of `write_images`."""
  return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture
def figures(monkeypatch):
  """The figures that are written, which are written as ever."""
  from matplotlib.figure import Figure  # Takes a while, and few tests draw.
  seen, savefig = [], Figure.savefig
  def keep(figure, *arguments, **options):
    seen.append(figure)
    savefig(figure, *arguments, **options)
  monkeypatch.setattr(Figure, 'savefig', keep)
  return seen


@pytest.fixture
def tiny_config(image_folder, tmp_path):
  """The config of `tiny` on `image_folder`."""
  return tiny(image_folder, tmp_path / 'run')
