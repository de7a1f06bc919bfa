"""The head's part of `benchmarks.accelerator`: its results against float64, and its time."""
import importlib.util
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks import head
from benchmarks.accelerator_report import CORRECTNESS, Report, Setting, add_plan, milliseconds
from benchmarks.timing import interleaved
from conic_jax.hardware import mesh as meshes
from conic_jax.losses import partitioned
from conic_jax.memories import instance_rows

# The largest error allowed, as a share of the largest entry.
TOLERANCES = {'float32': 1e-4, 'bfloat16': 3e-2, 'float16': 1e-2}
# The momentum before the step that is checked, as a share of the rows.
_MOVING = 1e-4
NO_TORCH = 'PyTorch with CUDA is not installed'


def forms(device: Any, dtype: Any, dim: int) -> list[str]:
  """The forms of the head that serve a device: 'xla', and a Pallas kernel."""
  softmax = partitioned.Softmax(2, head.TEMPERATURE, meshes.make_mesh(devices=[device]), dtype)
  return list(dict.fromkeys(['xla', partitioned.kernel(dim, softmax)]))


def check(report: Report, setting: Setting) -> None:
  """Compares a step in every type and form with float64 on the CPU; there, kernels run as plain JAX."""
  problem = head.make_problem(*setting.checked)
  wanted = report.attempt(CORRECTNESS, 'float64 on the CPU', lambda: _reference(problem))
  if wanted is None:
    return
  for name, tolerance in TOLERANCES.items():
    dtype = jnp.dtype(name)
    on_cpu = setting.device.platform == 'cpu'
    for form in ['xla', 'triton', 'mosaic'] if on_cpu else forms(setting.device, dtype, setting.checked[2]):
      found = report.attempt(CORRECTNESS, f'{form}, {name}',
                             lambda dtype=dtype, form=form: _first_step(problem, dtype, setting.device, form))
      for quantity, value in (found or {}).items():
        error = float(np.abs(value - wanted[quantity]).max() / np.abs(wanted[quantity]).max())
        report.add(CORRECTNESS, f'{form}, {name}: {quantity}', f'error {error:.1e}', f'at most {tolerance:g}',
                   error / tolerance, passed=error <= tolerance)


def _reference(problem: head.Problem) -> dict[str, Any]:
  """What a step gives in float64."""
  loss, gradient, from_rest = head.reference(problem)
  momentum = (problem.rows - from_rest) / head.LR + head.MOMENTUM * _MOVING * problem.rows
  return _quantities(problem, loss, gradient, problem.rows - head.LR * momentum, momentum)


def _quantities(problem: head.Problem, loss: Any, gradient: Any, rows: Any, momentum: Any) -> dict[str, Any]:
  """What is compared; the gradient of rows outside the batch apart, as it is much smaller."""
  before = problem.rows.astype(np.float64)
  others = momentum - (head.MOMENTUM * _MOVING + head.WEIGHT_DECAY) * before
  return {'loss': loss, 'gradient of the features': gradient, 'rows': rows, 'momentum': momentum,
          "other rows' gradient": np.delete(others, problem.ids, axis=0)}


def _first_step(problem: head.Problem, dtype: Any, device: Any, form: str) -> dict[str, Any]:
  """The same on a device."""
  count = len(problem.rows)
  step, rows, batch = head.partitioned_step(problem, dtype, [device], form)
  loss, gradient, (weights, momentum) = head.jax_variant(
    step, instance_rows.Rows(rows.weights, _MOVING * rows.weights), batch,
    lambda rows: jnp.stack([rows.weights[:count], rows.momentum[:count]])).first
  return _quantities(problem, loss, gradient, weights, momentum)


def measure(report: Report, setting: Setting) -> None:
  """Times the head's forms and PyTorch in turn, against the time to move what must be moved."""
  problem, device = head.make_problem(*setting.timed), setting.device
  num_instances, _, dim = setting.timed
  dtype = meshes.compute_dtype('auto', device)
  makes: dict[str, Callable[[], head.Variant]] = {
    form: lambda form=form: head.ours(problem, dtype, [device], form) for form in forms(device, dtype, dim)}
  if has_cuda_torch():
    makes['PyTorch'] = lambda: head.torch_variant(problem, metric_learning=False, device='cuda')
  variants = {name: made for name, make in makes.items()
              if (made := report.attempt('head', f'{name}, {dtype}', make)) is not None}
  times = report.attempt('head', 'time', lambda: interleaved(
    {name: variant.step for name, variant in variants.items()}, setting.repeats)) or {}
  # The first pass reads the rows; the second reads and writes rows and velocities.
  floor = 5 * 4 * num_instances * dim / setting.bandwidth if setting.bandwidth else None
  for name, seconds in times.items():
    median = float(np.median(seconds))
    if floor:
      report.add('head', f'{name} to its floor', milliseconds(median), f'{milliseconds(floor)} for its bytes',
                 median / floor)
    else:
      report.add('head', name, milliseconds(median), 'the bandwidth of this device is unknown')
    for other in ('xla', 'PyTorch'):
      if other in times and name not in (other, 'PyTorch'):
        report.add('head', f'{name} to {other}', milliseconds(median), milliseconds(np.median(times[other])),
                   float(np.median(seconds / times[other])))
    if variants[name].text:
      add_plan(report, f'head, {name}', median, variants[name].text, setting.where)
  if not has_cuda_torch():
    report.add('head', 'PyTorch', 'not measured', NO_TORCH)


def has_cuda_torch() -> bool:
  """Whether PyTorch is installed and finds a GPU."""
  if not importlib.util.find_spec('torch'):
    return False
  import torch  # pyright: ignore[reportMissingImports]
  return torch.cuda.is_available()
