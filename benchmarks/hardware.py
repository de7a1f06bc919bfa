"""The hardware and versions that a benchmark ran on."""
import os
import platform
from importlib.metadata import version
from pathlib import Path


def cpu_name() -> str:
  """The processor's name, as reported by the system."""
  info = Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
  return names[0] if names else platform.processor() or platform.machine()


def hardware() -> str:
  """One line: processor and cores, accelerators, versions."""
  import jax  # After a benchmark has chosen its cores.
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  devices = f'{jax.device_count()} × {jax.devices()[0].device_kind}'
  versions = ', '.join(f'{name} {version(name)}' for name in ('jax', 'flax', 'optax'))
  return (f'{cpu_name()}, {cores} core(s); jax devices: {devices}. '
          f'Python {platform.python_version()}, {versions}.')
