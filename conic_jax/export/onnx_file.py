"""Encoders as ONNX: Transformers' model of the same weights, through PyTorch's exporter."""
import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conic_jax.errors import UserError
from conic_jax.models import EncoderModule, VisionTransformer

_EXAMPLE = 64                   # pixels per side of the images that the network is traced with
_OPSET = 20

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
    UserError: if PyTorch, Transformers, onnx or onnxscript is not installed.
  """
  try:
    import onnxscript  # noqa: F401
    import torch
    import transformers
  except ImportError as error:
    raise UserError(f"--to=onnx needs {error.name}: pip install 'conic_jax[onnx]'.") from None

  class Features(torch.nn.Module):
    """The pooled features alone."""

    def __init__(self, model):
      super().__init__()
      self.model = model

    def forward(self, images):
      return self.model(images).pooler_output.flatten(1)

  with tempfile.TemporaryDirectory() as folder, _quietly():
    write_folder(network, variables, Path(folder))
    module = Features(transformers.AutoModel.from_pretrained(folder)).eval()
    side, sizes = _EXAMPLE, {0: torch.export.Dim.AUTO}
    if isinstance(network, VisionTransformer):
      side = len(variables['params']['stem']['positions']) * network.patch
    else:
      sizes |= {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    torch.onnx.export(
      module, (torch.zeros(2, 3, side, side),), str(path), dynamo=True, opset_version=_OPSET,
      input_names=['images'], output_names=['features'], dynamic_shapes=({**sizes},), external_data=False,
      verbose=False)


@contextlib.contextmanager
def _quietly():
  """Without the exporter's and Transformers' progress, which is about their own insides."""
  before = logging.root.manager.disable
  logging.disable(logging.WARNING)
  try:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
      warnings.simplefilter('ignore')
      yield
  finally:
    logging.disable(before)
