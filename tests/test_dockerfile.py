"""The Dockerfile: linted where hadolint is installed, built where a docker daemon answers."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HADOLINT = shutil.which('hadolint') or shutil.which('hadolint', path=str(Path(sys.executable).parent))


def docker_answers():
  if not shutil.which('docker'):
    return False
  try:
    return subprocess.run(['docker', 'info'], capture_output=True, timeout=20, check=False).returncode == 0
  except subprocess.TimeoutExpired:
    return False


@pytest.mark.skipif(HADOLINT is None, reason='hadolint is not installed')
def test_the_linter_has_nothing_to_say():
  done = subprocess.run([HADOLINT, str(ROOT / 'Dockerfile')], capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout) == (0, '')


def test_what_is_copied_is_there_and_not_ignored():
  copied = re.findall(r'^COPY (.+) \S+$', (ROOT / 'Dockerfile').read_text(), re.MULTILINE)
  kept = {line[1:] for line in (ROOT / '.dockerignore').read_text().splitlines() if line.startswith('!')}
  names = {name for line in copied for name in line.split()}
  assert names == kept
  for name in names:
    assert (ROOT / name).exists(), name


@pytest.mark.slow
def test_the_image_for_a_cpu_runs_the_command():
  if not docker_answers():
    pytest.skip('no docker daemon answers')
  subprocess.run(['docker', 'build', '--build-arg', 'EXTRAS=', '-t', 'conic_jax:test', str(ROOT)], check=True)
  done = subprocess.run(['docker', 'run', '--rm', 'conic_jax:test', '--help'], capture_output=True, text=True,
                        check=True)
  assert 'usage: conic COMMAND' in done.stdout
