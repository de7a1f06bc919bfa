"""JSON files of a run."""
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conic_jax.buckets.bucket import is_remote


def write_json(path: Any, content: Mapping[str, Any], indent: int | None = 2) -> None:
  """Writes a JSON file, of this machine or in a bucket, atomically."""
  text = json.dumps(content, indent=indent) + '\n'
  if is_remote(path):  # An object is whole or not there.
    path.write_text(text)
    return
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_text(text)
  temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
  """The object in a JSON file; None if it is damaged or missing."""
  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError):
    return None
  return content if isinstance(content, dict) else None
