"""XLA's flags for tests: compiling takes most of their time, and their shapes are too small for fast code."""
from importlib.metadata import version

from conic_jax.hardware.compiler import CONVOLUTIONS_BY_EIGEN

# Kernels of MLIR take three times as long to compile; jaxlib 0.11 has no others. To split a program, to
# compile its parts beside each other, takes a fifth more processor time.
_QUICK = version('jaxlib').startswith('0.10.')


def xla_flags(devices):
  """The value of XLA_FLAGS of a process with this many CPU devices."""
  return (f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 '
          + CONVOLUTIONS_BY_EIGEN
          + ' --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1' * _QUICK)
