"""Encoders as ONNX: Transformers' model of the same weights, through PyTorch's exporter."""
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from conic_jax.errors import UserError
from conic_jax.models import EncoderModule, VisionTransformer

_EXAMPLE = 64                   # pixels per side of the images that the network is traced with
_NEEDED = ('torch', 'transformers', 'onnx', 'onnxscript')
_PROGRAM = Path(__file__).with_name('onnx_process.py')

WriteFolder = Callable[[EncoderModule, Mapping[str, Any], Path], None]


def write(network: EncoderModule, variables: Mapping[str, Any], path: Path,
          write_folder: WriteFolder) -> None:
  """Writes a network as ONNX, from 'images' float32 [B, 3, H, W], normalised, to 'features' float32 [B, F].

  The batch may be of any size, and so may the images, but for a vision transformer's.

  Args:
    network: the encoder.
    variables: its {'params', 'batch_stats'}.
    path: the file.
    write_folder: writes the folder for Transformers, which exists then, (network, variables, folder).

  Raises:
    UserError: if PyTorch, Transformers, onnx or onnxscript is not installed, or PyTorch's exporter fails.
  """
  if missing := [name for name in _NEEDED if find_spec(name) is None]:
    raise UserError(f"--to=onnx needs {missing[0]}: pip install 'conic_jax[onnx]'.")
  side, sides = _EXAMPLE, 'any'
  if isinstance(network, VisionTransformer):
    side, sides = len(variables['params']['stem']['positions']) * network.patch, 'one'
  with tempfile.TemporaryDirectory() as folder:
    write_folder(network, variables, Path(folder))
    done = subprocess.run([sys.executable, '-P', str(_PROGRAM), folder, str(path), str(side), sides],
                          capture_output=True, text=True, check=False)
  if done.returncode:
    said = (done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1]
    raise UserError(f"--to=onnx: PyTorch's exporter failed ({said}). The tested versions are "
                    "those of pip install 'conic_jax[onnx]'.")
