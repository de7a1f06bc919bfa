"""A train step on a CPU against lightly's, with PyTorch.

  python -m benchmarks.cpu_step                          all settings
  python -m benchmarks.cpu_step --only imagenet_stem_32 --repeats 5

MoCo v2 and SimCLR, each library's step as its users run it: ours takes uint8 crops and augments them in the
step; lightly's takes float images that its loader has augmented, which is not timed. Networks, batch, heads,
number of keys and optimizer are the same, batch norm is over the whole batch, and PyTorch has channels last.
Both use the same threads, in turn in one process. Times are of the processor, all threads together, so that
other programs of the machine matter less; the table gives medians, and the median of the ratios of
neighbours in time. Writes benchmarks/results/cpu_step.md. Needs lightly (pip install -e '.[benchmarks]').
"""
import argparse
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

# OpenMP's threads would wait for work by spinning, which is counted as time of the processor.
os.environ.update(OMP_WAIT_POLICY='PASSIVE', GOMP_SPINCOUNT='0')

import jax
import numpy as np
import torch

from benchmarks.hardware import hardware
from benchmarks.step import prepare
from benchmarks.timing import interleaved
from conic_jax.command_line import load
from conic_jax.hardware import mesh as meshes
from conic_jax.hardware.compiler import prepare_compiler

RESULTS = Path(__file__).parent / 'results' / 'cpu_step.md'
KEYS, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 4096, 0.06, 0.9, 1e-4
METHODS = {'MoCo v2': 'moco_v2', 'SimCLR': 'simclr'}
WHY = (
  'Where the ratio is below 1, most of what is left is the gradient of the kernel on large maps: of 128 maps '
  "of 32 × 32 with 64 channels, 215 ms against PyTorch's 141 ([convolutions](convolutions.md)). XLA leaves "
  'it to Eigen, and transposes batch and channels of both its inputs for it.')


class Setting(NamedTuple):
  """Network, side of the views, and images of a batch."""
  encoder: str
  stem: str
  side: int
  batch: int


SETTINGS = {
  'imagenet_stem_32': Setting('resnet18', 'imagenet', 32, 128),
  'cifar_stem_32': Setting('resnet18', 'cifar', 32, 64),
  'side_96': Setting('resnet18', 'imagenet', 96, 32), 'resnet50_224': Setting('resnet50', 'imagenet', 224, 8)}


def our_step(method_name: str, setting: Setting) -> Callable[[], Any]:
  """The whole step of a method, from uint8 views to the new state."""
  config = load(f'configs/{METHODS[method_name]}.py')
  config.encoder.update(name=setting.encoder, stem=setting.stem)
  config.views.size, config.batch_size = setting.side, setting.batch
  if 'queue' in config:
    config.queue.size = KEYS
    config.batch_norm.groups = 0
  prepared = prepare(config, 50_000, meshes.make_mesh())
  state = prepared.state

  def take():
    nonlocal state
    state, *_ = jax.block_until_ready(prepared.step(state, prepared.batch))
  return take


def network(setting: Setting) -> torch.nn.Module:
  """torchvision's ResNet with the stem, without its classifier."""
  import torchvision
  encoder = getattr(torchvision.models, setting.encoder)()
  encoder.fc = torch.nn.Identity()
  if setting.stem == 'cifar':
    encoder.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    encoder.maxpool = torch.nn.Identity()
  return encoder


def lightly_step(method_name: str, setting: Setting) -> Callable[[], Any]:
  """The step of a method from float views, as in lightly's examples."""
  from lightly.loss import NTXentLoss
  from lightly.models.modules import MoCoProjectionHead, SimCLRProjectionHead
  from lightly.models.utils import deactivate_requires_grad, update_momentum
  width = 2048 if setting.encoder == 'resnet50' else 512
  moco = method_name == 'MoCo v2'
  head = MoCoProjectionHead if moco else SimCLRProjectionHead
  last: dict[str, Any] = {'memory_format': torch.channels_last}
  make = lambda: torch.nn.Sequential(network(setting), head(width, 2048, 128)).to(**last)
  model, momentum_model = make(), make() if moco else None
  criterion = NTXentLoss(0.2, memory_bank_size=(KEYS, 128) if moco else 0)
  optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
  images = lambda: torch.randn(setting.batch, 3, setting.side, setting.side).contiguous(
    memory_format=torch.channels_last)
  first, second = images(), images()
  if momentum_model is not None:
    deactivate_requires_grad(momentum_model)

  def take():
    optimizer.zero_grad()
    if momentum_model is None:
      loss = criterion(model(first), model(second))
    else:
      update_momentum(model, momentum_model, 0.999)
      with torch.no_grad():
        keys = momentum_model(second)
      loss = criterion(model(first), keys)
    loss.backward()
    optimizer.step()
  return take


def measure(method_name: str, setting: Setting, repeats: int) -> tuple[float, float, float]:
  """Median seconds of the processor, ours and lightly's, and the median ratio of lightly's to ours."""
  times = interleaved({'ours': our_step(method_name, setting), 'lightly': lightly_step(method_name, setting)},
                      repeats, time.process_time)
  ours, lightly = times['ours'], times['lightly']
  return float(np.median(ours)), float(np.median(lightly)), float(np.median(lightly / ours))


def define_missing_operators() -> None:
  """Lets torchvision be imported where its operators are compiled for another PyTorch; networks need none."""
  for name in ('nms', 'qnms'):
    if not hasattr(torch.ops.torchvision, name):
      torch.library.define(f'torchvision::{name}', '(Tensor dets, Tensor scores, float threshold) -> Tensor')


def main() -> None:
  """Measures, prints and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--only', choices=SETTINGS, help='one setting only; writes nothing')
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  prepare_compiler()
  define_missing_operators()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  lines = ['# A train step on a CPU against lightly', '', '`python -m benchmarks.cpu_step`', '', hardware(),
           f'torch {torch.__version__}, lightly {version("lightly")}; {KEYS:,} keys.', '',
           '| method | network | side | images | conic_jax (CPU s) | lightly (CPU s) | lightly / conic_jax |',
           '| --- | --- | ---: | ---: | ---: | ---: | ---: |']
  for name in [args.only] if args.only else SETTINGS:
    for method_name in METHODS:
      setting = SETTINGS[name]
      ours, theirs, ratio = measure(method_name, setting, args.repeats)
      encoder, stem, side, batch = setting
      lines.append(f'| {method_name} | {encoder}, {stem} stem | {side} | {batch} | {ours:.2f} '
                   f'| {theirs:.2f} | {ratio:.2f} |')
      print(lines[-1], flush=True)
  if not args.only:
    RESULTS.write_text('\n'.join([*lines, '', WHY]) + '\n')


if __name__ == '__main__':
  main()
