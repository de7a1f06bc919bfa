"""Images per second that one core prepares: this project's input pipeline against others, and two cores.

    python -m benchmarks.input [--images DIR] [--json FILE]

Two 224-pixel ConIC views per image. Here the host decodes, crops and resizes (`train_batches`) and the device
does the rest (`augment`). The others (`benchmarks.input_peers`) do the same on the host, or the whole recipe:
RandomResizedCrop, flip, ColorJitter, grayscale, blur, to float, normalise. Pillow antialiases whenever an
image shrinks, our host only above a factor of 2; the others have both settings. All are pinned to the same
core, have one thread and take turns; the table gives medians over rounds. Time is CPU time, so other load on
the machine matters little. Without --images, uses the photographs of scikit-image and scikit-learn, short
side 256. Writes benchmarks/results/input.md. Peers that are not installed are left out, and the page says
which: torchvision (pip install -e '.[benchmarks]'), and DALI, whose wheel for CUDA needs no GPU (pip install
nvidia-dali-cuda120).
"""
import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import PIL.Image

from benchmarks import input_cores, input_peers
from benchmarks.hardware import hardware
from conic_jax.command_line import load
from conic_jax.views import Views

CONFIG: Any = load('configs/conic.py')
VIEWS = Views(**CONFIG.views)
# So many batches that those prepared ahead at the end hardly count.
BATCH, BATCHES, LONG, ROUNDS, SHORT_SIDE = 64, 6, 18, 5, 256
BILINEAR = PIL.Image.Resampling.BILINEAR
RESULTS = Path(__file__).parent / 'results' / 'input.md'
WHY = (
  'Crops are made without flips, which ours leaves to the device. Ours decodes only the smallest box that '
  "holds both views. Antialiased, it is behind, for TensorFlow's antialiased resize is slow; so training "
  "antialiases above a factor of 2 only. In the whole recipe, torchvision's blur is a convolution, and "
  "Pillow's a running mean.")


def main():
  parser = argparse.ArgumentParser(description='Images a second that one core prepares.')
  parser.add_argument('--images', help='folder of photographs, short side about 256')
  parser.add_argument('--json', help='file to write the figures to as well')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as made:
    images, cores = args.images or make_images(made), {}
    if hasattr(os, 'sched_setaffinity'):
      cores = input_cores.measure(images)
      os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # Before a library's threads: they inherit it.
    figures = measure(images) | {'cores': cores}
  figures['images'] = 'given with --images' if args.images else 'photographs of the packages'
  write(figures)
  if args.json:
    Path(args.json).write_text(json.dumps(figures, indent=2))


def measure(folder: str) -> dict:
  """Images per second of CPU time for each part, as medians over interleaved rounds."""
  from conic_jax.data import folder as folders  # After the core is chosen.
  source: Any = folders.Folder(folder, '')
  files = [source.name(id) for id in range(source.num_images)]
  parts: dict[str, input_peers.Rate] = {
    'ours, crop': lambda: time_ours(source),
    'ours, crop, antialiased': lambda: time_ours(source, antialias_above=1.0), 'ours, device': time_device(),
    **input_peers.dali(files, VIEWS), **input_peers.torchvision(source, VIEWS),
    **input_peers.pillow(source, VIEWS)}
  rounds = {name: [] for name in parts}
  for _ in range(ROUNDS):
    for name, run in parts.items():
      rounds[name].append(run())
  rates = {name: statistics.median(values) for name, values in rounds.items()}
  import jax
  return {'rates': rates, 'rounds': rounds, 'device': jax.devices()[0].device_kind,
          'number': source.num_images, 'bytes': statistics.mean(os.path.getsize(file) for file in files)}


def time_ours(source, **options):
  from conic_jax.data import pipeline
  from conic_jax.data.sampler import Sampler
  batch = min(BATCH, source.num_images)
  stream = pipeline.train_batches(source, (VIEWS,), Sampler(source.num_images, batch, seed=0), start_step=0,
                                  rows=np.arange(batch), threads=1, prefetch=1, **options)
  return rate(stream, batch, time.process_time, LONG)


def rate(stream, batch, clock, batches=BATCHES):
  """Images per second of a stream of batches, by a clock; the first is not counted."""
  next(stream)
  start = clock()
  for _ in range(batches):
    next(stream)
  seconds = clock() - start
  stream.close()
  return batches * batch / seconds


def time_device():
  """Returns a function that times the compiled `augment` on the default device."""
  import jax

  from conic_jax.data import augment
  images = np.random.default_rng(0).integers(
      0, 256, (BATCH, VIEWS.count, VIEWS.size, VIEWS.size, 3), np.uint8)
  inputs = jax.device_put((images, np.zeros((BATCH, VIEWS.count), bool)))
  keys = augment.view_keys(0, 0, jax.numpy.arange(BATCH), VIEWS.count)
  run = jax.jit(lambda images, flip, keys: augment.augment(images, flip, keys, VIEWS))
  run(*inputs, keys).block_until_ready()
  clock = time.process_time if jax.default_backend() == 'cpu' else time.perf_counter

  def once():
    start = clock()
    run(*inputs, keys).block_until_ready()
    return BATCH / (clock() - start)
  return once


def make_images(folder: str) -> str:
  """Writes JPEGs of the packages' photographs, in several framings, and returns `folder`."""
  import skimage.data
  import sklearn.datasets
  names = ('astronaut.png', 'chelsea.png', 'coffee.png', 'ihc.png', 'motorcycle_left.png',
           'rocket.jpg')
  photographs = [PIL.Image.open(f'{skimage.data.data_dir}/{name}').convert('RGB') for name in names]
  photographs += [PIL.Image.fromarray(sklearn.datasets.load_sample_image(name))
                  for name in ('china.jpg', 'flower.jpg')]
  rng = np.random.default_rng(0)
  for i in range(16 * len(photographs)):
    photograph = photographs[i % len(photographs)]
    height = int(min(photograph.size) * rng.uniform(0.7, 1))
    width = int(min(height * rng.uniform(1, 1.5), photograph.width))
    left, top = (int(rng.integers(room + 1)) for room in (photograph.width - width,
                                                          photograph.height - height))
    scale = SHORT_SIDE / min(width, height)
    framed = photograph.crop((left, top, left + width, top + height))
    framed.resize((round(width * scale), round(height * scale)), BILINEAR).save(
        f'{folder}/{i:03}.jpg', quality=90)
  return folder


def ratios(rounds: dict[str, list[float]]) -> list[str]:
  """Rows of the table: each part's rate, and that of our crop to it, antialiased like it."""
  rows = []
  for name, rates in rounds.items():
    like = 'ours, crop, antialiased' if 'antialiased' in name or name == 'Pillow, crop' else 'ours, crop'
    ratio = np.median(np.divide(rounds[like], rates))
    shown = f'{ratio:.2f}' if 'crop' in name and 'ours' not in name else ''
    rows.append(f'| {name} | {statistics.median(rates):,.0f} | {shown} |')
  return rows


def write(figures: dict):
  """Prints the table and writes it to benchmarks/results."""
  import tensorflow as tf
  versions, absent = input_peers.versions()
  table = '\n'.join([
      '# Input: images a second of one core', '',
      f'Two 224-pixel views an image, {figures["number"]} JPEGs ({figures["images"]}), median of '
      f'{ROUNDS} rounds. `python -m benchmarks.input`', '',
      f'{hardware()} TensorFlow {tf.__version__}, {", ".join(versions)}.',
      *(f'{name} is not installed, and left out.' for name in absent), '',
      '| part | images a second of the processor | ours to it, antialiased alike |', '| --- | ---: | ---: |',
      *ratios(figures['rounds']), '', WHY, '',
      *(input_cores.report(figures['cores'], figures['bytes']) if figures['cores'] else [])])
  print(table)
  RESULTS.parent.mkdir(exist_ok=True)
  RESULTS.write_text(table)


if __name__ == '__main__':
  main()
