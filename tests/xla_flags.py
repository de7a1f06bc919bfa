"""XLA's flags for tests: compiling takes most of their time, and their shapes are too small for fast code."""
from importlib.metadata import version

# Kernels of MLIR take three times as long to compile; jaxlib 0.11 has no others.
_FAST = ' --xla_cpu_use_fusion_emitters=false' if version('jaxlib').startswith('0.10.') else ''


def xla_flags(devices):
  """The value of XLA_FLAGS of a process with this many CPU devices."""
  return f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0{_FAST}'
