"""All checks of a GPU or a TPU in one command of less than ten minutes.

  python -m benchmarks.accelerator               on the first device; small shapes where that is a CPU
  python -m benchmarks.accelerator --small

On one device: the head's loss, gradients, rows and momentum in every type, in XLA's form and as Pallas
kernels where they serve, against float64 on the CPU; the head's time against the time to move its bytes,
XLA's form and PyTorch; the train step with ResNet-50 against its encoder alone and against PyTorch with
torch.compile and mixed precision; both against the plan; and the images that the host's cores prepare against
the step. PyTorch is left out where it or its GPU is missing, and nothing starts after seven minutes. A ratio
is the first figure's time to the second's, or an error to what is allowed. What fails is a row with its
error, and the rest goes on; the exit code is 1 if a result of the head is wrong or could not be computed.
Writes benchmarks/results/accelerator_DEVICE.md and its picture.
"""
import argparse
import importlib.util
import os
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from benchmarks import accelerator_head, accelerator_report, accelerator_step
from benchmarks.accelerator_report import Report, Setting
from benchmarks.hardware import hardware
from conic_jax.hardware import topologies
from conic_jax.hardware.compiler import prepare_compiler

RESULTS = Path(__file__).parent / 'results'
# Seconds after which nothing new starts, so that all ends within ten minutes.
_LAST_START = 420
_TPU_KINDS = {'v4': 'v4', 'v5 lite': 'v5e', 'v5e': 'v5e', 'v5p': 'v5p', 'v5': 'v5p', 'v6 lite': 'v6e',
              'v6e': 'v6e'}


def topology_of(platform: str, kind: str) -> topologies.Topology | None:
  """A device in the table of hardware; None if it is not there.

  Args:
    platform: 'gpu', 'tpu' or another.
    kind: as in 'NVIDIA A100-SXM4-40GB' or 'TPU v5 lite'.
  """
  if platform == 'tpu' and (name := _TPU_KINDS.get(kind.removeprefix('TPU ').lower())):
    axes = {'v4': 3, 'v5p': 3}.get(name, 2)
    return topologies.parse(f'{name}:{"x".join("1" * axes)}')
  model = re.search(r'\b([AHV]\d00)\b', kind) if platform == 'gpu' else None
  if model is None:
    return None
  memory = re.search(r'(\d+)\s?GB', kind)
  names = [name for name in topologies.GPUS if name.startswith(f'{model.group(1)}-')]
  same = [name for name in names if memory and name.endswith(f'-{memory.group(1)}GB')]
  return topologies.parse(f'1x{(same or names)[0]}') if names else None


def choose(device: Any, small: bool) -> Setting:
  """What to measure on a device."""
  where = topology_of(device.platform, device.device_kind)
  if small:
    return Setting(device, where, checked=(300, 24, 128), timed=(4000, 64, 128), preset='photos',
                   batch_size=16, num_instances=2560, smaller=True, repeats=3)
  return Setting(device, where, checked=(131_072, 256, 128), timed=(1_281_167, 1024, 128), preset='imagenet',
                 batch_size=64, num_instances=1_281_167, smaller=False, repeats=20)


def versions() -> str:
  """PyTorch's version beside those of `hardware`, where it is installed."""
  found = [f'{name} {version(name)}' for name in ('torch', 'torchvision') if importlib.util.find_spec(name)]
  return f'{hardware()} {", ".join(found)}'.rstrip()


def main(argv: list[str] | None = None) -> int:
  """Measures, prints and writes everything.

  Returns:
    The exit code.
  """
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--small', action='store_true', help='small shapes, as on a CPU')
  parser.add_argument('--results', type=Path, default=RESULTS, help='folder for the table and the picture')
  args = parser.parse_args(argv)
  prepare_compiler()
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # PyTorch needs memory too.
  start, device, report = time.perf_counter(), jax.devices()[0], Report(_LAST_START)
  small = args.small or device.platform == 'cpu'
  setting = choose(device, small)
  for name, part in ((accelerator_report.CORRECTNESS, accelerator_head.check),
                     ('head', accelerator_head.measure), ('step', accelerator_step.measure)):
    report.attempt(name, 'as a whole', lambda part=part: part(report, setting))
  shapes = '; '.join(f'{what} N = {n:,}, M = {m:,}, D = {d}' for what, (n, m, d) in (
    ('checked with', setting.checked), ('timed with', setting.timed)))
  heading = [f'# {device.device_kind}: correctness and speed', '',
             f'`python -m benchmarks.accelerator{" --small" if small else ""}`', '', versions(), '',
             f'The head is {shapes}. The step has {setting.batch_size} images and '
             f'{setting.num_instances:,} rows. Took {time.perf_counter() - start:.0f} s.']
  slug = re.sub(r'[^a-z0-9]+', '_', device.device_kind.lower()).strip('_')
  path = accelerator_report.write(report, args.results, f'accelerator_{slug}', heading)
  print(f'{path}: {"correct" if report.is_correct else "NOT CORRECT"}')
  return 0 if report.is_correct else 1


if __name__ == '__main__':
  sys.exit(main())
