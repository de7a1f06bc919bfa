"""XLA's flags for tests: compiling takes most of their time, and their shapes are too small for fast code."""
import functools
import inspect
import os
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
  """Runs a test in a process of its own where this one compiles otherwise, with other rounding in float16."""
  @functools.wraps(test)
  def run(*arguments, **fixtures):
    if not _QUICK:
      test(*arguments, **fixtures)
      return
    name = f'{inspect.getfile(test)}::{test.__name__}'
    done = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', name], text=True,
                          env={**os.environ, _MLIR: '1'}, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    assert '1 passed' in done.stdout
  return run
