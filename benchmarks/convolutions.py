"""Convolutions on a CPU: XLA's default, this library's, and PyTorch's.

  python -m benchmarks.convolutions              those of the ResNets that a laptop trains
  python -m benchmarks.convolutions --repeats 9

Forward, gradient of the input and gradient of the kernel of single convolutions, with the same threads and in
turn in one process. Times are of the processor, all threads together, so that other programs of the machine
matter less; the tables give medians. Writes benchmarks/results/convolutions.md. Needs torch
(pip install -e '.[benchmarks]').
"""
import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# OpenMP's threads would wait for work by spinning, which is counted as time of the processor.
os.environ.update(OMP_WAIT_POLICY='PASSIVE', GOMP_SPINCOUNT='0')

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.hardware import hardware
from benchmarks.timing import interleaved
from conic_jax.hardware.compiler import CONVOLUTIONS_BY_EIGEN
from conic_jax.models.cpu_convolution import convolve

RESULTS = Path(__file__).parent / 'results' / 'convolutions.md'
_NAME, _, _VALUE = CONVOLUTIONS_BY_EIGEN.removeprefix('--').partition('=')
OURS = {_NAME: _VALUE}
# Images, side, channels in and out, side of the kernel, stride.
SHAPES = (
  (128, 32, 3, 64, 7, 2), (128, 8, 64, 64, 3, 1), (128, 4, 128, 128, 3, 1), (128, 2, 256, 256, 3, 1),
  (128, 1, 512, 512, 3, 1), (128, 32, 64, 64, 3, 1), (128, 16, 128, 128, 3, 1), (128, 8, 256, 256, 3, 1),
  (128, 4, 512, 512, 3, 1), (32, 24, 64, 64, 3, 1), (32, 6, 256, 256, 3, 1), (16, 56, 64, 64, 3, 1),
  (16, 56, 64, 256, 1, 1), (16, 14, 256, 1024, 1, 1), (16, 7, 512, 512, 3, 1))


def jax_passes(x: np.ndarray, kernel: np.ndarray, gradient: np.ndarray, stride: int, ours: bool
               ) -> list[Callable]:
  """The three passes by JAX, compiled."""
  margin, options = kernel.shape[0] // 2, OURS if ours else {}

  def forward(x, kernel):
    how: dict[str, Any] = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'), 'lhs_dilation': (1, 1),
                           'rhs_dilation': (1, 1), 'feature_group_count': 1}
    one = convolve if ours else jax.lax.conv_general_dilated
    return one(x, kernel, (stride, stride), ((margin, margin),) * 2, **how)

  def to_input(x, kernel, gradient):
    return jax.vjp(lambda x: forward(x, kernel), x)[1](gradient)[0]

  def to_kernel(x, kernel, gradient):
    return jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](gradient)[0]

  arrays = [jnp.asarray(array) for array in (x, kernel, gradient)]
  passes = [(forward, arrays[:2]), (to_input, arrays), (to_kernel, arrays)]
  compiled = [(jax.jit(one, compiler_options=options), args) for one, args in passes]
  return [lambda one=one, args=args: jax.block_until_ready(one(*args)) for one, args in compiled]


def torch_passes(x: np.ndarray, kernel: np.ndarray, gradient: np.ndarray, stride: int) -> list[Callable]:
  """The three passes by PyTorch, channels last."""
  last = lambda array, axes: torch.tensor(array.transpose(axes)).contiguous(memory_format=torch.channels_last)
  x_, gradient_, kernel_ = last(x, (0, 3, 1, 2)), last(gradient, (0, 3, 1, 2)), last(kernel, (3, 2, 0, 1))
  margin = kernel.shape[0] // 2
  backward = lambda mask: torch.ops.aten.convolution_backward(
    gradient_, x_, kernel_, None, [stride] * 2, [margin] * 2, [1, 1], False, [0, 0], 1, mask)
  return [lambda: torch.nn.functional.conv2d(x_, kernel_, stride=stride, padding=margin),
          lambda: backward([True, False, False]), lambda: backward([False, True, False])]


def measure(shape: tuple[int, ...], repeats: int) -> np.ndarray:
  """Medians in milliseconds, [3 variants, 3 passes]."""
  images, side, channels, outputs, size, stride = shape
  rng = np.random.default_rng(0)
  out = (side + 2 * (size // 2) - size) // stride + 1
  x, kernel, gradient = (rng.standard_normal(dims, np.float32) for dims in (
    (images, side, side, channels), (size, size, channels, outputs), (images, out, out, outputs)))
  passes = [*jax_passes(x, kernel, gradient, stride, ours=False),
            *jax_passes(x, kernel, gradient, stride, ours=True), *torch_passes(x, kernel, gradient, stride)]
  seconds = interleaved({str(index): one for index, one in enumerate(passes)}, repeats, time.process_time)
  return 1e3 * np.array([np.median(times) for times in seconds.values()]).reshape(3, 3)


def main() -> None:
  """Measures, prints and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--repeats', type=int, default=7)
  args = parser.parse_args()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  lines = ['# Convolutions on a CPU', '', '`python -m benchmarks.convolutions`', '', hardware(),
           f'torch {torch.__version__}.', '',
           'Milliseconds of the processor: forward, gradient of the input, gradient of the kernel.', '',
           "| images × side, channels, kernel / stride | XLA's default | conic_jax | PyTorch | "
           "PyTorch's sum to ours |", '| --- | ---: | ---: | ---: | ---: |']
  for shape in SHAPES:
    images, side, channels, outputs, size, stride = shape
    default, ours, torchs = measure(shape, args.repeats)
    cells = [' / '.join(f'{value:.1f}' for value in row) for row in (default, ours, torchs)]
    lines.append(f'| {images} × {side}, {channels} → {outputs}, {size} / {stride} | {" | ".join(cells)} | '
                 f'{torchs.sum() / ours.sum():.2f} |')
    print(lines[-1], flush=True)
  RESULTS.write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
