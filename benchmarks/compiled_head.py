"""The instance softmax with its SGD as compiled for GPUs that are not here: bytes, and the least time.

  python -m benchmarks.compiled_head

For an H100, the step of `benchmarks.head` is compiled with its Pallas kernels and in XLA's form. For 64 V100,
the whole step with a billion classes is the plan in experiments/one_million_memory. Bytes are counted by
`conic_jax.hardware.program_cost`; times are lower bounds from the hardware's bandwidth and products. Needs
the compiler (pip install -e '.[plan-gpu]'). Writes benchmarks/results/compiled_head.md.
"""
import argparse
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import head
from benchmarks.hardware import hardware
from conic_jax.hardware import mesh as meshes
from conic_jax.hardware import program_cost, topologies
from conic_jax.losses import partitioned
from conic_jax.memories import instance_rows
from conic_jax.plan import roofline
from experiments.one_million_memory.__main__ import OURS, load

RESULTS = Path(__file__).parent / 'results' / 'compiled_head.md'
GPU, INSTANCES, FEATURES, DIM = '1xH100-80GB', 1_281_167, 1024, 128
CLUSTER, BILLION = '64xV100-32GB', 1_000_000_000
WHY = (
  'On an H100, the kernels keep the logits on the chip. So says the compiled program: no GPU was at hand to '
  'time it (`python -m benchmarks.accelerator` does). The step on V100s is short of 2.5 s because they keep '
  "XLA's form, which writes the logits of each chunk to memory and reads them back: XLA has no Triton for "
  'GPUs before compute capability 8.0.')


def compiled(kernel: str) -> dict[str, Any]:
  """Bytes and least seconds of a step on the GPU: 'triton' or 'xla'."""
  where = topologies.parse(GPU)
  mesh = meshes.make_mesh(devices=topologies.devices(where))
  softmax = partitioned.Softmax(INSTANCES, head.TEMPERATURE, mesh, jnp.bfloat16, kernel=kernel)
  split = meshes.batch_sharding(mesh)
  shape = lambda *sides, dtype=jnp.float32: jax.ShapeDtypeStruct(sides, dtype, sharding=split)
  rows: Any = shape(instance_rows.padded_rows(INSTANCES, mesh.size), DIM)
  step = jax.jit(functools.partial(head.step_of, softmax), donate_argnums=0)
  traced = step.trace(instance_rows.Rows(rows, rows), shape(FEATURES, DIM), shape(FEATURES, dtype=jnp.int32))
  program = traced.lower(lowering_platforms=(where.platform,)).compile()
  cost = program_cost.analyse(program.as_text() or '')
  return {'bytes_accessed': cost.bytes_accessed, **roofline(cost, where)}


def row(what: str, *figures: dict[str, Any]) -> str:
  """A row of the table; two figures are with the cheapest and with the dearest branches."""
  between = lambda name, unit: ' to '.join(dict.fromkeys(f'{each[name] * unit:,.4g}' for each in figures))
  return (f'| {what} | {between("bytes_accessed", 1e-9)} | {between("kernel_seconds", 1e3)} | '
          f'{between("compute_seconds", 1e3)} |')


def main() -> None:
  """Compiles, prints and writes the table."""
  argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
  where = topologies.parse(GPU)
  topologies.check_compiler(where)
  topologies.prepare(where)
  on_gpu = f'{GPU}, {INSTANCES:,} classes, {FEATURES:,} features, head alone'
  whole = load(CLUSTER, OURS, BILLION) or {}
  lines = ['# The head, compiled for GPUs', '', '`python -m benchmarks.compiled_head`', '', hardware(), '',
           '| step | GB that a device moves | least ms | of products alone |', '| --- | ---: | ---: | ---: |',
           row(f'{on_gpu}, Pallas kernels', compiled('triton')),
           row(f"{on_gpu}, XLA's form", compiled('xla')),
           row(f'{CLUSTER}, {BILLION:,} classes, whole step', whole['least'], whole), '', WHY]
  print('\n'.join(lines))
  RESULTS.write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
