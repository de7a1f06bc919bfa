"""The cost of a train step, against the bare forward and backward pass of its encoder.

  python -m benchmarks.step                      both settings below
  python -m benchmarks.step --only photos --repeats 20 --json FILE
  python -m benchmarks.step --against CHECKOUT   the step of another commit and this one's, in turn

Two variants are interleaved in one process: the whole step (augmentation on the device, encoder, head,
losses, the rows of all N classes, optimizer), and value and gradient of the encoder alone on equally many
float images. The table gives medians, and the median of the ratios of neighbours in time. Writes
benchmarks/results/step.md, or with --against step_against.md.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.hardware import hardware
from conic_jax import methods, optim
from conic_jax.command_line import load
from conic_jax.hardware import mesh as meshes
from conic_jax.hardware.compiler import prepare_compiler
from conic_jax.pretraining import train_step

# Preset of configs/conic.py, images per batch (None is the preset's), instances.
SETTINGS = {'photos': ('photos', None, 2560), 'resnet50': ('imagenet', 32, 1_281_167)}
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'


def make_batch(config, mesh, num_instances: int) -> dict:
  """A batch of noise, with the shapes and types of a real one."""
  rng = np.random.default_rng(0)
  size, count, batch = config.views.size, config.views.count, config.batch_size
  ids = rng.choice(num_instances, batch, replace=False).astype(np.int32)
  return meshes.to_global({
    'views': (rng.integers(0, 256, (batch, count, size, size, 3), np.uint8),), 'id': ids,
    'valid': np.ones(batch, bool), 'crop': np.zeros((batch, count, 4), np.float32),
    'flip': rng.random((batch, count)) < 0.5}, mesh)


class Prepared(NamedTuple):
  """A train step and what it takes.

  Attributes:
    step: (state, batch) -> (state, …), with its state donated.
    state, batch: its arguments.
    bare: value and gradient of the encoder alone on the batch's images.
    num_views: images that the encoder sees.
  """
  step: Any
  state: Any
  batch: dict
  bare: Callable[[], Any]
  num_views: int


def prepare(config: Any, num_instances: int, mesh: Mesh) -> Prepared:
  """The train step of a config for N instances, on noise."""
  dtype = meshes.compute_dtype('auto', mesh.devices.flat[0])
  method = methods.make(config, num_instances, mesh, dtype)
  optimizer = optim.make_optimizer(config.optimizer)
  init = lambda: train_step.init_state(method, optimizer, 0, dtype)
  shardings = train_step.state_shardings(jax.eval_shape(init), method, mesh)
  state = jax.jit(init, out_shardings=shardings)()
  batch = make_batch(config, mesh, num_instances)
  step = train_step.jit_step(
    train_step.make_step(method, optimizer, optim.cosine_schedule(0.06, 1000), 0, 1000, dtype), shardings,
    mesh)

  # The step donates its state, so the bare encoder gets copies of what it reads.
  params, batch_stats = jax.tree.map(jnp.copy, (state.params['encoder'], state.batch_stats['encoder']))
  views = batch['views'][0]
  images = jnp.reshape(views, (-1, *views.shape[2:])).astype(jnp.float32) / 255

  @jax.jit
  def bare(params, images):
    def loss(params):
      features, new = method.network.encoder.apply(
        {'params': params, 'batch_stats': batch_stats}, images, mode='batch', mutable=['batch_stats'])
      return features.mean(), new
    return jax.value_and_grad(loss, has_aux=True)(params)
  return Prepared(step, state, batch, lambda: bare(params, images), len(images))


def measure(name: str, repeats: int) -> dict[str, object]:
  """Times one setting.

  Returns:
    Medians in seconds, the median ratio, and what was timed.
  """
  preset, batch_size, num_instances = SETTINGS[name]
  config = load(f'configs/conic.py:{preset}')
  config.batch_size = batch_size or config.batch_size
  prepared = prepare(config, num_instances, meshes.make_mesh())
  state = prepared.state

  def timed(function):
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result

  times = {'step': [], 'bare': []}
  for repeat in range(repeats + 1):
    seconds, (state, *_) = timed(lambda state=state: prepared.step(state, prepared.batch))
    bare_seconds, _ = timed(prepared.bare)
    if repeat:  # The first of each compiles.
      times['step'].append(seconds)
      times['bare'].append(bare_seconds)
  ratios = np.divide(times['step'], times['bare'])
  return {'setting': name, 'encoder': config.encoder.name, 'views': prepared.num_views,
          'size': config.views.size, 'instances': num_instances, 'dtype': meshes.compute_dtype('auto').name,
          'repeats': repeats, 'step_seconds': float(np.median(times['step'])),
          'bare_seconds': float(np.median(times['bare'])), 'time_ratio': float(np.median(ratios))}


def against(other: Path, name: str, repeats: int, rounds: int) -> list[str]:
  """Times the step of another checkout and of this one in turn, each time in a process of its own.

  Returns:
    A table of the medians in milliseconds of each round, and of their ratio.
  """
  def seconds_of(checkout: Path, result: Path) -> float:
    subprocess.run([sys.executable, '-m', 'benchmarks.step', f'--only={name}', f'--repeats={repeats}',
                    f'--json={result}'], cwd=checkout, check=True, stdout=subprocess.DEVNULL)
    return json.loads(result.read_text())[0]['step_seconds']

  with tempfile.TemporaryDirectory() as folder:
    pairs = np.array([[seconds_of(checkout, Path(folder) / 'rows.json') for checkout in (other, ROOT)]
                      for _ in range(rounds)])
  ratios = pairs[:, 1] / pairs[:, 0]
  lines = [f'| round | {commit(other)} (ms) | {commit(ROOT)} (ms) | ratio |', '| ---: | ---: | ---: | ---: |']
  lines += [f'| {index} | {1000 * before:.1f} | {1000 * after:.1f} | {after / before:.3f} |'
            for index, (before, after) in enumerate(pairs, 1)]
  return [*lines, '', f'Median of the ratios: {np.median(ratios):.3f}.']


def commit(checkout: Path) -> str:
  """The commit of a checkout, in short."""
  return subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=checkout, check=True, text=True,
                        stdout=subprocess.PIPE).stdout.strip()


def main() -> None:
  """Measures, prints and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--only', choices=SETTINGS, help='one setting only')
  parser.add_argument('--repeats', type=int, default=0, help='0: 20 for photos, 2 for resnet50')
  parser.add_argument('--json', type=Path, help='write the rows there too')
  parser.add_argument('--against', type=Path, metavar='CHECKOUT', help='a checkout of another commit')
  parser.add_argument('--rounds', type=int, default=5, help='with --against')
  args = parser.parse_args()
  prepare_compiler()
  if args.against:
    name, repeats = args.only or 'photos', args.repeats or 20
    lines = [f'# The train step of two commits: {name}', '',
             f'`python -m benchmarks.step --against CHECKOUT --only={name} --repeats={repeats} '
             f'--rounds={args.rounds}`', '', hardware(), '',
             *against(args.against.resolve(), name, repeats, args.rounds)]
    print('\n'.join(lines))
    (RESULTS / 'step_against.md').write_text('\n'.join(lines) + '\n')
    return
  names = [args.only] if args.only else list(SETTINGS)
  rows = [measure(name, args.repeats or (20 if name == 'photos' else 2)) for name in names]
  lines = ['# The whole train step against the bare forward and backward of its encoder', '',
           '`python -m benchmarks.step`', '', hardware(), '',
           '| setting | encoder | views × side | instances | type | step (s) | bare encoder (s) | ratio |',
           '| --- | --- | --- | ---: | --- | ---: | ---: | ---: |']
  lines += ['| {setting} | {encoder} | {views} × {size} | {instances:,} | {dtype} | {step_seconds:.3f} | '
            '{bare_seconds:.3f} | {time_ratio:.3f} |'.format(**row) for row in rows]
  print('\n'.join(lines))
  if not args.only:
    (RESULTS / 'step.md').write_text('\n'.join(lines) + '\n')
  if args.json:
    args.json.write_text(json.dumps(rows, indent=2) + '\n')


if __name__ == '__main__':
  main()
