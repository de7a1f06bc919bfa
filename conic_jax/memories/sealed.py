"""JSON files with a checksum of what they say."""
import json
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from conic_jax.errors import UserError
from conic_jax.memories import journal

VERSION = 2
_CHECKSUM = 'crc32'


def write(path: Path, fields: Mapping[str, Any]) -> None:
  """Writes fields to a file, which has either its old content or the new one at every moment.

  Args:
    path: the file.
    fields: what JSON can hold; the version of the format and the checksum are added.
  """
  with journal.replacing(path) as file:
    file.write(encoded(fields))


def encoded(fields: Mapping[str, Any]) -> bytes:
  """The content of the file that `write` makes."""
  stated = {'version': VERSION, **fields}
  return json.dumps({**stated, _CHECKSUM: _checksum(stated)}, indent=2).encode() + b'\n'


def read(path: Path) -> dict[str, Any]:
  """Reads the fields of a file.

  Returns:
    The fields with the format's 'version'. Version 1 had no checksums, and no version in some files.

  Raises:
    UserError: if the file is damaged.
  """
  return decoded(path.read_bytes(), path)


def decoded(content: bytes, path: PurePath) -> dict[str, Any]:
  """The fields in the content of a file, as `read`."""
  try:
    stated = json.loads(content)
  except ValueError:
    stated = None
  if isinstance(stated, dict):
    checksum = stated.pop(_CHECKSUM, None)
    stated.setdefault('version', 1)
    if checksum == _checksum(stated) or (checksum is None and stated['version'] == 1):
      return stated
  raise UserError(f'{path} is damaged: {journal.REMEDY}')


def _checksum(fields: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(fields, sort_keys=True).encode())
