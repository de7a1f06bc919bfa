"""How programs are compiled, and where they are kept: settings that JAX and XLA read when they start."""
import contextlib
import hashlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

from conic_jax.home import cache_folder

# A CPU's convolutions by Eigen: the default, YNNPACK, takes up to three times as long for the kernel's
# gradient (`python -m benchmarks.convolutions`). Products and sums stay with YNNPACK.
_FUSIONS = '--xla_cpu_experimental_ynn_fusion_type='
CONVOLUTIONS_BY_EIGEN = f'{_FUSIONS}LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE'
# Seconds from which a program is kept, and bytes of all that are kept.
_WORTH_KEEPING, _MOST_BYTES = 0.1, 2 << 30


def prepare_compiler() -> None:
  """Makes a CPU's convolutions fast, and keeps compiled programs for the next start.

  They are kept in the user's cache folder, or where JAX_COMPILATION_CACHE_DIR says;
  JAX_ENABLE_COMPILATION_CACHE=0 keeps none. What the user has set stays. Comes before JAX's first program.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  if _FUSIONS not in flags:
    os.environ['XLA_FLAGS'] = f'{flags} {CONVOLUTIONS_BY_EIGEN}'.lstrip()
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ and (folder := _writable(compiled_folder())):
    _drop_oldest(folder, _MOST_BYTES)
    _set_jax('jax_compilation_cache_dir', str(folder))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
      _set_jax('jax_persistent_cache_min_compile_time_secs', _WORTH_KEEPING)


def options_of_one_run(platform: str) -> dict[str, Any]:
  """Options for a program that runs once: on a CPU half the time to compile, for the same bits."""
  chosen = 'xla_backend_optimization_level' in os.environ.get('XLA_FLAGS', '')
  return {} if chosen or platform != 'cpu' else {'xla_backend_optimization_level': 1}


def compiled_folder() -> Path:
  """Folder of the programs compiled for this kind of CPU, which other CPUs may not be able to run."""
  return cache_folder() / f'compiled-{_kind_of_cpu()}'


def _kind_of_cpu() -> str:
  """Short name of what the CPU can do."""
  info = Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  able = next((line for line in lines if line.startswith(('flags', 'Features'))), platform.processor())
  return hashlib.sha256(f'{platform.machine()} {able}'.encode()).hexdigest()[:12]


def _writable(folder: Path) -> Path | None:
  """The folder, made if it is missing; None if nothing can be written there."""
  with contextlib.suppress(OSError):
    folder.mkdir(parents=True, exist_ok=True)
    return folder if os.access(folder, os.W_OK | os.X_OK) else None
  return None


def _drop_oldest(folder: Path, most_bytes: int) -> None:
  """Deletes the files that were not read for longest, until those that stay are small enough."""
  with contextlib.suppress(OSError):
    files = [(entry.stat(), entry.path) for entry in os.scandir(folder)]
    total = 0
    for stat, path in sorted(files, key=lambda file: -file[0].st_atime):
      total += stat.st_size
      if total > most_bytes:
        os.unlink(path)


def _set_jax(name: str, value: str | float) -> None:
  """Sets a value of JAX's configuration, for this process and those that it starts."""
  os.environ[name.upper()] = str(value)
  if jax := sys.modules.get('jax'):
    jax.config.update(name, value)
