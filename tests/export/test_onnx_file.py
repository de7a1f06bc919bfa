"""The file for ONNX is written by a process without TensorFlow, and what goes wrong there is one sentence."""
import os
import subprocess
import sys

import pytest
from encoders import assert_same_in_onnxruntime, draw_variables, network_of

from conic_jax.errors import UserError
from conic_jax.export import onnx_file, targets

# Ends a process that has TensorFlow, as the real one does.
_TRITON = """
import os, sys
if 'tensorflow' in sys.modules:
  os.abort()
raise ImportError('not here')
"""
_EXPORT = """
import sys
import conic_jax
import conic_jax.data.lazy_tensorflow
assert 'tensorflow' in sys.modules
conic_jax.load(sys.argv[1]).export('onnx', sys.argv[2])
"""


@pytest.fixture(scope='module')
def network():
  return network_of(blocks=(1, 1), width=0.25)


@pytest.fixture(scope='module')
def exported(network, tmp_path_factory):
  """(the process that wrote it, a file for ONNX, the network's variables)."""
  for name in ('onnxscript', 'transformers'):
    pytest.importorskip(name)
  folder, variables = tmp_path_factory.mktemp('exported'), draw_variables(network)
  (folder / 'triton.py').write_text(_TRITON)
  targets.check('onnx', network)
  targets.write('safetensors', network, variables, 'card', folder / 'x.safetensors')
  done = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', _EXPORT, folder / 'x.safetensors', folder / 'x.onnx'],
    env={**os.environ, 'PYTHONPATH': str(folder)}, text=True, capture_output=True, check=False)
  return done, folder / 'x.onnx', variables


@pytest.mark.slow
def test_triton_is_never_imported_beside_tensorflow(exported):
  done, path, _ = exported
  assert done.returncode == 0, done.stderr
  assert path.stat().st_size > 10_000


@pytest.mark.slow
def test_onnxruntime_gives_the_features_of_a_resnet(network, exported):
  _, path, variables = exported
  assert_same_in_onnxruntime(path, network, variables, (32, 64))


def test_what_is_not_installed_is_named(network, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'onnxscript', None)
  with pytest.raises(UserError, match=r"^--to=onnx needs onnxscript: pip install 'conic_jax\[onnx\]'\.$"):
    onnx_file.write(network, {}, tmp_path / 'x.onnx', lambda *_: None)


@pytest.mark.slow
def test_an_exporter_that_fails_is_one_sentence(network, tmp_path):
  for name in ('onnxscript', 'transformers'):
    pytest.importorskip(name)
  with pytest.raises(UserError, match=r"^--to=onnx: PyTorch's exporter failed \(.*\)\. The tested versions"):
    onnx_file.write(network, {}, tmp_path / 'x.onnx', lambda *_: None)
  assert not (tmp_path / 'x.onnx').exists()
