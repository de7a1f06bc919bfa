"""The instance softmax with its SGD, against the usual implementations.

  python -m benchmarks.head                      N = 131,072 classes, 128 features of 128 dimensions
  python -m benchmarks.head --json FILE
  python -m benchmarks.head --instances 1281167 --features 1024 --dtype bfloat16     on an accelerator

One step: the loss of all features over all N classes, its gradient with respect to the features, and momentum
SGD with weight decay on all N rows. `ours` passes over the rows in chunks; `optax` uses full logits, autodiff
and optax's SGD; `torch` is F.linear, F.cross_entropy and torch's SGD; `metric_learning` is
pytorch-metric-learning's NormalizedSoftmaxLoss with torch's SGD. The last two run if torch is installed
(pip install -e '.[benchmarks]'), always on the CPU. All variants are interleaved in one process; the ratios
are medians of the ratios of neighbours in time. Temporary memory is reported by the compiler; torch reports
none. Errors are relative to the largest entry, against float64, in the first step: the largest of loss,
gradient of the features, and rows.
"""
import argparse
import functools
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.hardware import hardware
from conic_jax import losses, optim
from conic_jax.hardware import mesh as meshes
from conic_jax.losses import partitioned
from conic_jax.memories import instance_rows

TEMPERATURE, LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.06, 0.9, 1e-4
RESULTS = Path(__file__).parent / 'results'
WHY = (
  'On a CPU, ours is short of 0.47 of optax and 0.25 of PyTorch: it passes over the rows twice, with four '
  'products where optax has three, and these products alone take as long as the step. Chunks of 512 or 1,024 '
  'rows take as long as those of 2,048, and chunks of 4,096 longer.')


class Problem(NamedTuple):
  """One batch and the rows it is scored against, on the host.

  Attributes:
    rows: float32 [N, D], of unit norm; features: float32 [M, D], of unit norm; ids: int32 [M].
  """
  rows: np.ndarray
  features: np.ndarray
  ids: np.ndarray


class Variant(NamedTuple):
  """An implementation of the step.

  Attributes:
    step: takes one step and waits for it.
    first: loss, gradient of the features and rows after one step.
    temporaries: bytes besides inputs and outputs, or None.
    text: the compiled program; '' for torch's.
  """
  step: Callable[[], Any]
  first: tuple[Any, Any, Any]
  temporaries: int | None
  text: str = ''


def make_problem(instances: int, features: int, dim: int) -> Problem:
  """Features near their rows, as halfway through training."""
  rng = np.random.default_rng(0)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  rows = unit(rng.standard_normal((instances, dim), np.float32))
  ids = rng.choice(instances, features, replace=False).astype(np.int32)
  return Problem(rows, unit(rows[ids] + 0.1 * rng.standard_normal((features, dim), np.float32)), ids)


def jax_variant(step: Callable, state: Any, batch: tuple, rows_of: Callable[[Any], jax.Array]) -> Variant:
  """A variant from a function (state, *batch) -> (state, loss, gradient), with its state donated."""
  compiled = jax.jit(step, donate_argnums=0).lower(state, *batch).compile()
  state, loss, gradient = jax.block_until_ready(compiled(state, *batch))
  first = np.asarray(loss), np.asarray(gradient), np.asarray(rows_of(state))

  def take():
    nonlocal state
    state, *_ = jax.block_until_ready(compiled(state, *batch))
  return Variant(take, first, compiled.memory_analysis().temp_size_in_bytes, compiled.as_text() or '')


def ours(problem: Problem, dtype: Any, devices: Sequence[Any] | None = None, kernel: str = '') -> Variant:
  """The partitioned classifier; see `partitioned_step`."""
  count = len(problem.rows)
  return jax_variant(*partitioned_step(problem, dtype, devices, kernel), lambda rows: rows.weights[:count])


def partitioned_step(problem: Problem, dtype: Any, devices: Sequence[Any] | None = None,
                     kernel: str = '') -> tuple[Callable, instance_rows.Rows, tuple]:
  """A step of the partitioned classifier.

  Args:
    problem: the batch and the rows.
    dtype: of the products.
    devices: that the rows are split over; None for all.
    kernel: as for `partitioned.Softmax`.

  Returns:
    The step, rows with momentum zero, and the batch, as for `jax_variant`.
  """
  mesh, count = meshes.make_mesh(devices=devices), len(problem.rows)
  softmax = partitioned.Softmax(count, TEMPERATURE, mesh, dtype, kernel=kernel)
  padded = np.zeros((instance_rows.padded_rows(count, mesh.size), problem.rows.shape[1]), np.float32)
  padded[:count] = problem.rows
  put = lambda x: jax.device_put(x, meshes.batch_sharding(mesh))
  rows = instance_rows.Rows(put(padded), put(np.zeros_like(padded)))
  return functools.partial(step_of, softmax), rows, (put(problem.features), put(problem.ids))


def step_of(softmax: partitioned.Softmax, rows: instance_rows.Rows, features: jax.Array, ids: jax.Array
            ) -> tuple[instance_rows.Rows, jax.Array, jax.Array]:
  """New rows, loss and gradient of the features by the partitioned classifier."""
  def loss_fn(features):
    scores = partitioned.scores(rows.weights, features, ids, softmax)
    return scores.loss.mean(), scores
  (loss, scores), gradient = jax.value_and_grad(loss_fn, has_aux=True)(features)
  batch = instance_rows.Classified(features, ids, jnp.full(len(features), 1 / len(features)), scores)
  rows = instance_rows.update(rows, batch, jnp.float32(LR), softmax, momentum=MOMENTUM,
                              weight_decay=WEIGHT_DECAY)
  return rows, loss, gradient


def optax_variant(problem: Problem, dtype: Any) -> Variant:
  """Full logits, autodiff and optax's SGD."""
  optimizer = optim.sgd(WEIGHT_DECAY, MOMENTUM)

  def step(state, features, ids):
    rows, opt_state = state

    def loss_fn(rows, features):
      logits = jnp.matmul(features.astype(dtype), losses.normalise(rows).T.astype(dtype),
                          preferred_element_type=jnp.float32) / TEMPERATURE
      return optax.softmax_cross_entropy_with_integer_labels(logits, ids).mean()
    loss, (row_gradient, gradient) = jax.value_and_grad(loss_fn, argnums=(0, 1))(rows, features)
    updates, opt_state = optimizer.update(row_gradient, opt_state, rows, lr=jnp.float32(LR))
    return (optax.apply_updates(rows, updates), opt_state), loss, gradient

  rows, features, ids = map(jnp.asarray, problem)
  return jax_variant(step, (rows, optimizer.init(rows)), (features, ids), lambda state: state[0])


def torch_precision(device: str) -> Any:
  """torch's autocast: the 16-bit type that a GPU computes fast, and on the CPU none."""
  import torch  # pyright: ignore[reportMissingImports]
  narrow = device == 'cuda' and torch.cuda.get_device_capability() < (8, 0)
  return torch.autocast(device, torch.float16 if narrow else torch.bfloat16, enabled=device != 'cpu')


def torch_variant(problem: Problem, metric_learning: bool, device: str = 'cpu') -> Variant:
  """F.cross_entropy, or on the CPU NormalizedSoftmaxLoss, with torch's SGD; on 'cuda' in mixed precision."""
  import torch  # pyright: ignore[reportMissingImports]
  features = torch.tensor(problem.features, device=device, requires_grad=True)
  ids = torch.tensor(problem.ids, dtype=torch.int64, device=device)
  if metric_learning:
    from pytorch_metric_learning.losses import (  # pyright: ignore[reportMissingImports]
      NormalizedSoftmaxLoss,
    )
    loss_fn = NormalizedSoftmaxLoss(len(problem.rows), problem.rows.shape[1], temperature=TEMPERATURE)
    transposed = loss_fn.W.shape[0] == problem.rows.shape[1]
    loss_fn.W.data = torch.tensor(problem.rows.T.copy() if transposed else problem.rows)
    rows, score = loss_fn.W, lambda: loss_fn(features, ids)
  else:
    transposed = False
    rows = torch.nn.Parameter(torch.tensor(problem.rows, device=device))
    functional = torch.nn.functional
    score = lambda: functional.cross_entropy(
      functional.linear(features, functional.normalize(rows)) / TEMPERATURE, ids)
  optimizer = torch.optim.SGD([rows], LR, MOMENTUM, weight_decay=WEIGHT_DECAY)

  def take():
    optimizer.zero_grad()
    features.grad = None
    with torch_precision(device):
      loss = score()
    loss.backward()
    optimizer.step()
    return loss.item()  # Waits for the whole step.
  loss = take()
  after = rows.detach().cpu().numpy().T if transposed else rows.detach().cpu().numpy()
  first = loss, features.grad.cpu().numpy().copy(), after.copy()
  return Variant(take, first, None)


def reference(problem: Problem) -> tuple[Any, np.ndarray, np.ndarray]:
  """Loss, gradient of the features, and rows after one step, in float64 by blocks of classes."""
  rows, features, ids = problem.rows.astype(np.float64), problem.features.astype(np.float64), problem.ids
  norms = np.linalg.norm(rows, axis=1, keepdims=True)
  unit, count = rows / norms, len(features)
  blocks = [slice(start, start + 16384) for start in range(0, len(rows), 16384)]
  total, weighted = np.zeros(count), np.zeros_like(features)
  for block in blocks:
    terms = np.exp(features @ unit[block].T / TEMPERATURE - 1 / TEMPERATURE)
    total, weighted = total + terms.sum(axis=1), weighted + terms @ unit[block]
  own = np.sum(features * unit[ids], axis=1) / TEMPERATURE
  loss = np.mean(np.log(total) + 1 / TEMPERATURE - own)
  gradient = (weighted / total[:, None] - unit[ids]) / TEMPERATURE / count
  after = np.empty_like(rows)
  for block in blocks:
    errors = np.exp(features @ unit[block].T / TEMPERATURE - 1 / TEMPERATURE) / total[:, None]
    errors[np.arange(len(rows))[block][None] == ids[:, None]] -= 1
    row_gradient = errors.T @ features / TEMPERATURE / count
    row_gradient -= np.sum(row_gradient * unit[block], axis=1, keepdims=True) * unit[block]
    after[block] = rows[block] - LR * (row_gradient / norms[block] + WEIGHT_DECAY * rows[block])
  return loss, gradient, after


def error(first: tuple[Any, Any, Any], wanted: tuple[Any, Any, Any], features: np.ndarray) -> float:
  """The largest of the three errors, each relative to its own largest entry.

  Only the part of the gradient that turns the features counts: some variants normalise them again.
  """
  def turning(loss, gradient, rows):
    gradient = np.asarray(gradient, np.float64)
    return loss, gradient - np.sum(gradient * features, axis=1, keepdims=True) * features, rows
  return float(max(np.abs(got - want).max() / np.abs(want).max()
                   for got, want in zip(turning(*first), turning(*wanted))))


def main() -> None:
  """Measures, prints and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--instances', type=int, default=131_072, help='N')
  parser.add_argument('--features', type=int, default=128, help='M')
  parser.add_argument('--dim', type=int, default=128, help='D')
  parser.add_argument('--dtype', default='float32', help='of the products of ours and of optax')
  parser.add_argument('--repeats', type=int, default=15)
  parser.add_argument('--json', type=Path, help='write the rows there too')
  parser.add_argument('--results', type=Path, default=RESULTS / 'head.md')
  args = parser.parse_args()
  problem, dtype = make_problem(args.instances, args.features, args.dim), jnp.dtype(args.dtype)
  variants = {'optax': optax_variant(problem, dtype), 'ours': ours(problem, dtype)}
  if importlib.util.find_spec('torch'):
    variants['torch'] = torch_variant(problem, metric_learning=False)
  if importlib.util.find_spec('pytorch_metric_learning'):
    variants['metric_learning'] = torch_variant(problem, metric_learning=True)

  times = {name: [] for name in variants}
  for _ in range(args.repeats):
    for name, variant in variants.items():
      start = time.perf_counter()
      variant.step()
      times[name].append(time.perf_counter() - start)
  wanted, base = reference(problem), variants['optax'].temporaries or 1
  shape = {name: getattr(args, name) for name in ('instances', 'features', 'dim', 'dtype')}
  rows = [{'variant': name, 'seconds': float(np.median(times[name])),
           'time_ratio': float(np.median(np.divide(times[name], times['optax']))),
           'ours_to_it': float(np.median(np.divide(times['ours'], times[name]))),
           'temp_ratio': variant.temporaries and variant.temporaries / base,
           'error': error(variant.first, wanted, problem.features), **shape}
          for name, variant in variants.items()]
  shown = lambda ratio: '–' if ratio is None else f'{ratio:.1%}'
  flags = ' '.join(f'--{name} {value}' for name, value in shape.items())
  lines = ['# The instance softmax with its SGD, one step', '', f'`python -m benchmarks.head {flags}`', '',
           hardware(), '',
           '| variant | step (ms) | time to optax | ours to it | temporaries to optax | error |',
           '| --- | ---: | ---: | ---: | ---: | ---: |']
  lines += ['| {variant} | {ms:.1f} | {time_ratio:.2f} | {ours_to_it:.2f} | {temp} | {error:.1e} |'.format(
    ms=1e3 * row['seconds'], temp=shown(row['temp_ratio']), **row) for row in rows]
  if jax.default_backend() == 'cpu':
    lines += ['', WHY]
  print('\n'.join(lines))
  args.results.write_text('\n'.join(lines) + '\n')
  if args.json:
    args.json.write_text(json.dumps(rows, indent=2) + '\n')


if __name__ == '__main__':
  main()
