"""Eight CPU devices, strict ranks and dtypes, and the mesh."""
import contextlib
import os
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  '--xla_force_host_platform_device_count=8'
  # Compiling is most of a test's time: the shapes are too small for optimised code to pay.
  ' --xla_backend_optimization_level=0')
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
# Many tests compile the same step, some of them in processes of their own: all share what is compiled, as
# does the next run of the tests.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(Path(__file__).resolve().parents[1] / '.compiled'))
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'

import jax
import numpy as np
import pytest
from PIL import Image

from conic_jax.command_line import load
from conic_jax.hardware import mesh as meshes
from conic_jax.run.session import Session

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')


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


def write_images(root):
  """Writes train/ and test/ with two class folders of 16×16 PNGs: stripes and checks of random colour."""
  rng = np.random.default_rng(0)
  rows, columns = np.mgrid[:16, :16]
  patterns = {'checks': (rows // 4 + columns // 4) % 2, 'stripes': rows // 2 % 2}
  for split, count in (('train', 24), ('test', 8)):
    for name, pattern in patterns.items():
      folder = root / split / name
      folder.mkdir(parents=True)
      for index in range(count):
        colours = rng.integers(0, 256, (2, 3), np.uint8)
        noise = rng.integers(-20, 20, (16, 16, 3))
        image = np.clip(colours[pattern] + noise, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f'{index:02d}.png')
  return root


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


def tiny(images, run):
  """ConIC on `write_images` with a network of one block: 3 steps an epoch, 2 epochs."""
  config = load('configs/conic.py:imagenet100')
  config.run = str(run)
  config.data.dir, config.data.train, config.data.test = str(images), 'train', 'test'
  config.batch_size, config.epochs, config.log_every = 16, 2, 1
  config.views.size = config.eval.resize = 16
  config.encoder.name, config.encoder.stem = 'resnet18', 'cifar'
  config.encoder.blocks, config.encoder.width = (1,), 0.125
  config.head.hidden, config.head.features = 16, 8
  config.probe.images, config.probe.times = 0, 2
  config.knn_every, config.eval.batch_size, config.eval.k = 1, 16, (3, 5)
  config.eval.baselines = False
  config.linear.learning_rates, config.linear.epochs, config.linear.batch_size = (0.1,), 1, 16
  return config
