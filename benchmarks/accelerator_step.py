"""The train step's part of `benchmarks.accelerator`: its time, and whether the images come fast enough."""
import importlib.util
import tempfile
import time
from typing import Any

import jax
import numpy as np

from benchmarks import step as steps
from benchmarks.accelerator_head import NO_TORCH, has_cuda_torch
from benchmarks.accelerator_report import Report, Setting, add_plan
from benchmarks.head import torch_precision
from benchmarks.timing import interleaved
from conic_jax.command_line import load
from conic_jax.data import folder, pipeline
from conic_jax.data.sampler import Sampler
from conic_jax.hardware import mesh as meshes
from conic_jax.views import Views


def measure(report: Report, setting: Setting) -> None:
  """Times the whole step and its encoder alone, the input, and PyTorch's encoder."""
  config: Any = load(f'configs/conic.py:{setting.preset}')
  config.batch_size = setting.batch_size
  if setting.smaller:
    config.encoder.blocks, config.encoder.width = (1,), 0.25
  views = config.batch_size * config.views.count
  per_second = lambda seconds: f'{views / seconds:,.0f} views/s'
  seconds = report.attempt('step', 'ConIC', lambda: _step_seconds(report, setting, config))
  images = report.attempt('input', 'images', lambda: _input_rate(config))
  torchs = _torch_seconds(report, setting, views, config.views.size)
  if seconds:
    step, encoder = (float(np.median(seconds[name])) for name in ('step', 'encoder'))
    report.add('step', 'whole step to its encoder', per_second(step), per_second(encoder),
               float(np.median(seconds['step'] / seconds['encoder'])))
    if torchs:
      report.add('step', 'encoder to PyTorch', per_second(encoder), per_second(torchs), encoder / torchs)
      report.add('step', 'whole step to PyTorch', per_second(step), per_second(torchs), step / torchs)
    if images:
      report.add('input', 'input to step', f'{images:,.0f} images/s prepared',
                 f'{config.batch_size / step:,.0f} images/s in the step', config.batch_size / step / images)
  elif images:
    report.add('input', 'images', f'{images:,.0f} images/s prepared')


def _step_seconds(report: Report, setting: Setting, config: Any) -> dict[str, np.ndarray]:
  """Seconds of 'step' and 'encoder' in turn; adds the plan's row for the step."""
  prepared = steps.prepare(config, setting.num_instances, meshes.make_mesh(devices=[setting.device]))
  compiled = prepared.step.lower(prepared.state, prepared.batch).compile()
  state = prepared.state

  def take():
    nonlocal state
    state, *_ = jax.block_until_ready(compiled(state, prepared.batch))
  seconds = interleaved({'step': take, 'encoder': lambda: jax.block_until_ready(prepared.bare())},
                        setting.repeats)
  add_plan(report, 'step', float(np.median(seconds['step'])), compiled.as_text() or '', setting.where)
  return seconds


def _torch_seconds(report: Report, setting: Setting, views: int, side: int) -> float | None:
  """Seconds of PyTorch's ResNet-50 with its SGD on as many images, compiled, in mixed precision."""
  missing = (NO_TORCH if not has_cuda_torch()
             else '' if importlib.util.find_spec('torchvision') else 'torchvision is not installed')
  if missing or setting.smaller:
    report.add('step', 'PyTorch', 'not measured', missing or 'the encoder is not ResNet-50')
    return None
  return report.attempt('step', 'PyTorch', lambda: float(np.median(interleaved(
    {'step': _torch_step(views, side)}, setting.repeats)['step'])))


def _torch_step(views: int, side: int) -> Any:
  """A compiled step that waits for itself."""
  import torch  # pyright: ignore[reportMissingImports]
  import torchvision  # pyright: ignore[reportMissingImports]
  network = torchvision.models.resnet50().cuda().to(memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(network.parameters(), 0.06, 0.9, weight_decay=1e-4)
  images = torch.randn(views, 3, side, side, device='cuda').to(memory_format=torch.channels_last)
  labels = torch.randint(1000, (views,), device='cuda')
  compiled = torch.compile(network)

  def take():
    optimizer.zero_grad()
    with torch_precision('cuda'):
      loss = torch.nn.functional.cross_entropy(compiled(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()
  for _ in range(3):
    take()
  return take


def _input_rate(config: Any) -> float:
  """Images per second that all cores decode and crop, from photographs with a short side of 256."""
  from benchmarks.input import make_images, rate  # Needs scikit-image and scikit-learn.
  with tempfile.TemporaryDirectory() as made:
    source = folder.Folder(make_images(made), '')
    batch = min(config.batch_size, source.num_images)
    sampler = Sampler(source.num_images, batch, seed=0)
    stream = pipeline.train_batches(source, (Views(**config.views),), sampler, start_step=0,
                                    rows=np.arange(batch))
    return rate(stream, batch, time.perf_counter)
