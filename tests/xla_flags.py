"""XLA's flags for tests: compiling takes most of their time, and their shapes are too small for fast code."""
import functools
import inspect
import os
import re
import subprocess
import sys
from importlib.metadata import version

from conic_jax.hardware.compiler import CONVOLUTIONS_BY_EIGEN

# Kernels of MLIR take three times as long to compile; jaxlib 0.11 has no others. To split a program, to
# compile its parts beside each other, takes a fifth more processor time.
_MLIR = 'CONIC_JAX_TESTS_MLIR'
_QUICK = version('jaxlib').startswith('0.10.') and _MLIR not in os.environ


def xla_flags(devices):
  """The value of XLA_FLAGS of a process with this many CPU devices."""
  return (f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 '
          + CONVOLUTIONS_BY_EIGEN
          + ' --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1' * _QUICK)


def with_mlir_kernels(test):
  """Runs a test elsewhere where this process compiles otherwise, with other rounding in float16.

  All tests of its file, which must each be such a one, run in one process.
  """
  @functools.wraps(test)
  def run(*arguments, **fixtures):
    if not _QUICK:
      test(*arguments, **fixtures)
      return
    outcome = _outcome_of(inspect.getfile(test))
    assert re.search(rf'^PASSED \S+::{test.__name__}$', outcome, re.MULTILINE), outcome
  return run


@functools.cache
def _outcome_of(file):
  """What pytest says of the tests of a file in a process with MLIR's kernels."""
  return subprocess.run([sys.executable, '-m', 'pytest', '-q', '-rA', '-p', 'no:cacheprovider', file],
                        text=True, env={**os.environ, _MLIR: '1'}, capture_output=True, check=False).stdout
