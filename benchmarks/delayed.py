"""The delayed update of the rows outside the window, against a sweep over all rows.

  python -m benchmarks.delayed                   N from 10⁵ to 10⁸
  python -m benchmarks.delayed --repeats 20 --json FILE

Ours is what a step costs: on the host, the products for 512 rows that come back after up to two epochs, and
on the device, applying them. The sweep decays every row and momentum in place. Both are interleaved in one
process; the table gives medians and the median of the ratios. If N exceeds the million rows swept at once,
the sweep counts N / 10⁶ times. The error, relative to the largest entry, compares the same rows after the
same steps with float64, step by step. Memory is the device memory reported by the compiler: the program's
arguments, results and temporaries (neither has any temporaries). Writes benchmarks/results/delayed.md.
"""
import argparse
import functools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.hardware import hardware
from conic_jax.memories import delayed
from conic_jax.optim import cosine_schedule

DIM, BATCH, EPOCHS = 128, 512, 2
SGD = {'momentum': 0.9, 'weight_decay': 1e-4}
SIZES = (10**5, 10**6, 10**7, 10**8)
SWEPT_AT_ONCE = 10**6
ROWS_COMPARED = 32
RESULTS = Path(__file__).parent / 'results'


@functools.partial(jax.jit, donate_argnums=(0, 1))
def sweep(weights: jax.Array, momentum: jax.Array, lr: jax.Array) -> tuple[jax.Array, jax.Array]:
  """One step of momentum SGD without a gradient, in place on all rows."""
  momentum = SGD['momentum'] * momentum + SGD['weight_decay'] * weights
  return weights - lr * momentum, momentum


@jax.jit
def swept(rows: jax.Array, start: jax.Array, rates: jax.Array) -> jax.Array:
  """Rows [k, 2, D] after all steps from `start`, one by one in float32."""
  def step(carry, now):
    index, lr = now
    stepped = jnp.stack(sweep(carry[:, 0], carry[:, 1], lr), axis=1)
    return jnp.where((index >= start)[:, None, None], stepped, carry), None
  return jax.lax.scan(step, rows, (jnp.arange(len(rates)), rates))[0]


def exact(rows: np.ndarray, start: np.ndarray, rates: np.ndarray) -> np.ndarray:
  """The same in float64: applies the steps to (w, v) = (1, 0) and (0, 1), then to each dimension."""
  weights, velocity = np.tile(np.eye(2), (len(rows), 1, 1)).transpose(1, 0, 2)
  order = np.argsort(start)
  weights, velocity, begun = weights[order], velocity[order], 0
  for step, lr in enumerate(rates.astype(np.float64)):
    while begun < len(order) and start[order[begun]] <= step:
      begun += 1
    velocity[:begun] = SGD['momentum'] * velocity[:begun] + SGD['weight_decay'] * weights[:begun]
    weights[:begun] -= lr * velocity[:begun]
  result = np.empty(rows.shape)
  result[order] = np.stack([weights, velocity], axis=1) @ rows[order].astype(np.float64)
  return result


def memory(function, *shapes) -> int:
  """Device memory of a program, in bytes."""
  analysis = function.lower(*shapes).compile().memory_analysis()
  return (analysis.argument_size_in_bytes + analysis.output_size_in_bytes
          - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes)


def relative_error(rows: np.ndarray, expected: np.ndarray) -> float:
  """Largest difference relative to the largest entry; the larger value of weights and momenta."""
  return float(max(np.abs(rows[:, part] - expected[:, part]).max() / np.abs(expected[:, part]).max()
                   for part in (0, 1)))


def measure(num_instances: int, repeats: int, folder: Path) -> list[dict[str, Any]]:
  """Times one N.

  Returns:
    A table row for ours and one for the sweep.
  """
  rng = np.random.default_rng(0)
  steps = EPOCHS * num_instances // BATCH
  rates = np.asarray(jax.vmap(cosine_schedule(0.06, steps))(jnp.arange(steps)))
  (folder / 'rates').write_bytes(rates.tobytes())
  log = delayed.Rates(folder / 'rates', steps, old=True, **SGD)  # They have no checksums.
  start = rng.integers(0, steps, BATCH)
  rows = rng.normal(size=(BATCH, 2, DIM)).astype(np.float32)
  apply = jax.jit(delayed.apply)
  ours = lambda: apply(log.products(start, steps).astype(np.float32), rows)

  count = min(num_instances, SWEPT_AT_ONCE)
  weights, momentum = jnp.ones((count, DIM)), jnp.zeros((count, DIM))
  times = {'ours': [], 'sweep': []}
  for repeat in range(repeats + 1):
    begin = time.perf_counter()
    jax.block_until_ready(ours())
    middle = time.perf_counter()
    weights, momentum = jax.block_until_ready(sweep(weights, momentum, 0.03))
    end = time.perf_counter()
    if repeat:  # The first of each compiles.
      times['ours'].append(middle - begin)
      times['sweep'].append((end - middle) * num_instances / count)

  few = slice(ROWS_COMPARED)
  expected = exact(rows[few], start[few], rates)
  errors = {'ours': relative_error(np.asarray(ours())[few], expected),
            'sweep': relative_error(np.asarray(swept(rows[few], start[few], rates)), expected)}
  shape = jax.ShapeDtypeStruct((num_instances, DIM), np.float32)
  taken = {'ours': memory(apply, jax.ShapeDtypeStruct((BATCH, 2, 2), np.float32), rows),
           'sweep': memory(sweep, shape, shape, 0.03)}
  ratios = {'ours': float(np.median(np.divide(times['ours'], times['sweep']))), 'sweep': 1.0}
  return [{'variant': variant, 'num_instances': num_instances, 'steps': steps, 'rows_swept_at_once': count,
           'seconds': float(np.median(times[variant])), 'time_ratio': ratios[variant],
           'bytes': taken[variant], 'temp_ratio': taken[variant] / taken['sweep'],
           'error': errors[variant]} for variant in ('ours', 'sweep')]


def main() -> None:
  """Measures, prints and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--repeats', type=int, default=15)
  parser.add_argument('--json', type=Path, help='write the rows there too')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    rows = [row for size in SIZES for row in measure(size, args.repeats, Path(folder))]
  lines = ['# The delayed update of 512 rows against a sweep over all N', '',
           f'`python -m benchmarks.delayed`; D = {DIM}, {EPOCHS} epochs of steps, the sweep of at most '
           f'{SWEPT_AT_ONCE:,} rows at once.', '', hardware(), '',
           '| N | steps | variant | time (ms) | ratio | device memory (MB) | ratio | error |',
           '| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |']
  lines += [f'| {row["num_instances"]:,} | {row["steps"]:,} | {row["variant"]} | {row["seconds"] * 1e3:,.2f} '
            f'| {row["time_ratio"]:.5f} | {row["bytes"] / 1e6:,.1f} | {row["temp_ratio"]:.6f} '
            f'| {row["error"]:.1e} |' for row in rows]
  print('\n'.join(lines))
  (RESULTS / 'delayed.md').write_text('\n'.join(lines) + '\n')
  if args.json:
    args.json.write_text(json.dumps(rows, indent=2) + '\n')


if __name__ == '__main__':
  main()
