"""Arrays by name from a file of weights, without executing pickled code."""
import argparse
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from conic_jax.errors import UserError

_ZIP, _PICKLE, _LFS = b'PK', b'\x80', b'version https://git-lfs'
_NO_WEIGHTS = {b'\x1f\x8b': 'a gzip archive: unpack it', b'\x89HDF': 'an HDF5 file, such as Keras writes',
               b'BZh': 'a bzip2 archive: unpack it', b'\xfd7zXZ': 'an xz archive: unpack it'}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
  """Reads the arrays of a .safetensors file, or of one written by torch.save.

  Args:
    path: the file; its content tells what it is, not its name.

  Returns:
    Arrays by name. Names inside dictionaries follow theirs, as in 'state_dict.conv1.weight'.

  Raises:
    UserError: if it cannot be read, holds pickled objects, or no arrays by name.
  """
  with open(path, 'rb') as file:
    start = file.read(512)
  if _is_safetensors(start, path):
    return _read_safetensors(path)
  torch = _torch(path)
  if told := _no_weights(start, path):
    raise UserError(f'{path} cannot be read: {told}.')
  return _read_torch(path, torch)


def _is_safetensors(start: bytes, path: Path) -> bool:
  """Whether a file is one of safetensors: the length of a JSON header, and the header."""
  if start[8:9] == b'{':
    return True
  return (path.suffix.lower() == '.safetensors' and not start.startswith((_ZIP, _PICKLE))
          and _no_weights(start, path) is None)


def _no_weights(start: bytes, path: Path) -> str | None:
  """What a file is that has no weights or not all of them; None if it may be read."""
  if not start:
    return 'it is empty'
  if start.lstrip()[:1] == b'<':
    return 'it is a web page, not the weights: download the file itself'
  if start.startswith(_LFS):
    return 'it is a pointer of Git LFS, not the weights: fetch them with git lfs pull'
  if kind := next((kind for magic, kind in _NO_WEIGHTS.items() if start.startswith(magic)), None):
    return f'it is {kind}'
  if start.startswith(_ZIP) and not zipfile.is_zipfile(path):
    return 'it is cut short: copy or download it again'
  return None


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
  try:
    return safetensors.numpy.load_file(path)
  except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
    raise UserError(f'{path} cannot be read as safetensors ({error}): it is damaged or cut short; copy or '
                    'download it again.') from error


def _torch(path: Path) -> Any:
  try:
    import torch
  except ModuleNotFoundError as error:
    raise UserError(f'{path} is read by PyTorch: pip install torch, or save it as .safetensors.') from error
  return torch


def _read_torch(path: Path, torch: Any) -> dict[str, np.ndarray]:
  # Settings and numbers that training scripts save beside their arrays, all of them plain data.
  harmless = [argparse.Namespace, np.dtype, np._core.multiarray.scalar, np.dtypes.Float64DType,
              np.dtypes.Float32DType, np.dtypes.Int64DType]
  try:
    with torch.serialization.safe_globals(harmless):
      content = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:  # A broken pickle can raise anything.
    if isinstance(error, EOFError) or 'truncated' in str(error) or 'unexpected EOF' in str(error):
      raise UserError(f'{path} cannot be read: it is cut short; copy or download it again.') from error
    raise UserError(f'{path} is no file of torch.save with arrays alone; other pickled objects could run '
                    'code and are refused: save its state_dict(), or .safetensors.') from error
  arrays = {name: value.detach().float().numpy() for name, value in _leaves(content)
            if isinstance(value, torch.Tensor)}
  if not arrays:
    raise UserError(f'{path} holds no arrays by name: save the state_dict() of the network.')
  return arrays


def _leaves(content: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  if not isinstance(content, Mapping):
    return
  for name, value in content.items():
    if isinstance(name, str):
      yield prefix + name, value
      yield from _leaves(value, f'{prefix}{name}.')
