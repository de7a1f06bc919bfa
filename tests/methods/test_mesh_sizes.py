"""Every method goes on when the number of devices changes between two starts."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from xla_flags import xla_flags

from conic_jax import methods

CASES = [*(name for name in methods.available() if name != 'conic_s'),
         *(f'conic_s {store}' for store in ('device', 'host', 'disk'))]
SHARES = 3


@pytest.mark.slow
@pytest.mark.parametrize('share', range(SHARES))
def test_the_losses_are_those_of_an_undisturbed_run(share, tmp_path):
  """8 → 4 → 16 devices, in a process that has them."""
  script, cases = Path(__file__).with_name('mesh_sizes_process.py'), CASES[share::SHARES]
  environment = os.environ | {'XLA_FLAGS': xla_flags(16),
                              'PYTHONPATH': os.pathsep.join(map(str, script.parents[1:3]))}
  done = subprocess.run([sys.executable, '-W', 'ignore', str(script), str(tmp_path), *cases], env=environment,
                        capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert list(found) == cases
  for case, (whole, changed) in found.items():
    assert len(whole) == len(set(whole)) == 6, case
    np.testing.assert_allclose(changed, whole, rtol=1e-4, err_msg=case)
