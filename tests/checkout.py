"""The checkout, and copies of it that tools may change."""
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What the tests have compiled, kept from run to run.
COMPILED = ROOT / '.compiled'


def copy_checkout(folder: Path) -> None:
  """Copies what git knows, or would, into a folder."""
  listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=ROOT,
                          check=True, capture_output=True, text=True).stdout
  for name in filter(None, listed.split('\0')):
    source, target = ROOT / name, folder / name
    if source.is_file():
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(source.read_bytes())
