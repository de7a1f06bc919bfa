"""The sampled classifier's step with rows in host memory or on disk, against all rows on the device.

  python -m benchmarks.store [--json FILE] [--repeats 16] [--batch 512] [--instances 200000]

benchmarks/sampled.py describes the step and the timing; only the place of the rows outside the window
differs. Writes benchmarks/results/store.md.
"""
import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.hardware import hardware
from benchmarks.sampled import RESULTS, WARM_UP, SampledStep, Shape, error, interleave, temporaries
from conic_jax.hardware import mesh as meshes

KINDS = ('device', 'host', 'disk')


def measure(num_instances: int, shape: Shape, repeats: int) -> list[dict]:
  """Times the three stores; see the module."""
  mesh = meshes.make_mesh()
  with tempfile.TemporaryDirectory() as folder:
    variants = {kind: SampledStep(kind, num_instances, shape, mesh, Path(folder) / kind) for kind in KINDS}
    seconds = interleave(variants, repeats)
    for variant in variants.values():
      variant.host.close()
    device = variants['device']
    return [{'variant': 'device' if kind == 'device' else 'ours', 'store': kind,
             'num_instances': num_instances, 'seconds': float(np.median(seconds[kind])),
             'time_ratio': float(np.median(seconds[kind] / seconds['device'])),
             'temp_ratio': temporaries(variant) / temporaries(device),
             'arguments_ratio': arguments(variant) / arguments(device),
             'error': error(variant)} for kind, variant in variants.items()]


def arguments(variant: SampledStep) -> int:
  """Bytes that a device holds between steps, as reported by the compiler."""
  return variant.compiled.memory_analysis().argument_size_in_bytes


def main() -> None:
  """Measures, prints and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--repeats', type=int, default=16)
  parser.add_argument('--batch', type=int, default=512, help='images of a batch, of two views each')
  parser.add_argument('--window', type=int, default=65_536)
  parser.add_argument('--instances', type=int, default=200_000)
  parser.add_argument('--json', type=Path, help='write the rows there too')
  args = parser.parse_args()
  shape = Shape(args.window, args.batch, views=2, dim=128, steps=WARM_UP + args.repeats)
  rows = measure(args.instances, shape, args.repeats)
  lines = ['# Rows in host memory or on disk against all on the device', '',
           '`python -m benchmarks.store`', '', hardware(), '',
           f'{args.instances:,} instances, a window of {shape.num_slots:,}, '
           f'{shape.batch_size * shape.views:,} features of {shape.dim} dimensions, {shape.batch_size} rows '
           f'in and out a step; medians of {args.repeats} steps.', '',
           '| rows outside the window | step (ms) | against device | arguments against device | '
           'temporaries against device | error |',
           '| --- | ---: | ---: | ---: | ---: | ---: |']
  for row in rows:
    lines.append('| {store} | {ms:.1f} | {time_ratio:.3f} | {arguments_ratio:.3f} | {temp_ratio:.3f} | '
                 '{error:.1e} |'.format(ms=1e3 * row['seconds'], **row))
  print('\n'.join(lines))
  (RESULTS / 'store.md').write_text('\n'.join(lines) + '\n')
  if args.json:
    args.json.write_text(json.dumps(rows, indent=2) + '\n')


if __name__ == '__main__':
  main()
