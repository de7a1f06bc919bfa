"""Images per second that one core prepares: this project's input pipeline against torchvision's recipe.

    python -m benchmarks.input [--images DIR] [--json FILE]

Two 224-pixel ConIC views per image. Here the host decodes, crops and resizes (`train_batches`) and the device
does the rest (`augment`). torchvision does everything on the host, in Pillow: it decodes the whole image,
then RandomResizedCrop, flip, ColorJitter in random order, grayscale, blur, to float, normalise. Pillow
antialiases whenever an image shrinks, our host only above a factor of 2; the table also shows what that
saves. Both are pinned to the same core and take turns; the table gives medians over rounds. Time is CPU time,
so other load on the machine matters little. Without --images, uses the photographs of scikit-image and
scikit-learn, short side 256. Writes benchmarks/results/input.md.
"""
import argparse
import io
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
import PIL.ImageEnhance
import PIL.ImageFilter

from benchmarks.hardware import hardware
from conic_jax.command_line import load
from conic_jax.views import Views

CONFIG: Any = load('configs/conic.py')
VIEWS = Views(**CONFIG.views)
BATCH, BATCHES, ROUNDS, PILLOW_IMAGES, SHORT_SIDE = 64, 6, 5, 64, 256
BILINEAR = PIL.Image.Resampling.BILINEAR
RESULTS = Path(__file__).parent / 'results' / 'input.md'


def main():
  parser = argparse.ArgumentParser(description='Images a second that one core prepares.')
  parser.add_argument('--images', help='folder of photographs, short side about 256')
  parser.add_argument('--json', help='file to write the figures to as well')
  args = parser.parse_args()
  if hasattr(os, 'sched_setaffinity'):  # Before any library starts its threads: they inherit it.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  with tempfile.TemporaryDirectory() as made:
    figures = measure(args.images or make_images(made))
  figures['images'] = 'given with --images' if args.images else 'photographs of the packages'
  write(figures)
  if args.json:
    Path(args.json).write_text(json.dumps(figures, indent=2))


def measure(folder: str) -> dict:
  """Images per second of CPU time for each part, as medians over interleaved rounds."""
  from conic_jax.data import folder as folders  # After the core is chosen.
  source = folders.Folder(folder, '')
  rng = np.random.default_rng(0)
  parts = {'ours, host': lambda: time_ours(source),
           'ours, host, antialiased as Pillow': lambda: time_ours(source, antialias_above=1.0),
           'Pillow, decode, crop, resize, flip': lambda: time_pillow(source, rng, pillow_crop),
           'Pillow, whole recipe': lambda: time_pillow(source, rng, pillow_view),
           'ours, device': time_device()}
  rounds = {name: [] for name in parts}
  for _ in range(ROUNDS):
    for name, run in parts.items():
      rounds[name].append(run())
  rates = {name: statistics.median(values) for name, values in rounds.items()}
  import jax
  return {'rates': rates, 'rounds': rounds, 'device': jax.devices()[0].device_kind,
          'number': source.num_images}


def time_ours(source, **options):
  from conic_jax.data import pipeline
  from conic_jax.data.sampler import Sampler
  batch = min(BATCH, source.num_images)
  stream = pipeline.train_batches(source, (VIEWS,), Sampler(source.num_images, batch, seed=0), start_step=0,
                                  rows=np.arange(batch), threads=1, prefetch=1, **options)
  return rate(stream, batch, time.process_time)


def rate(stream, batch, clock):
  """Images per second of a stream of batches, by a clock; the first is not counted."""
  next(stream)
  start = clock()
  for _ in range(BATCHES):
    next(stream)
  seconds = clock() - start
  stream.close()
  return BATCHES * batch / seconds


def time_pillow(source, rng, make_view):
  ids = rng.integers(source.num_images, size=PILLOW_IMAGES)
  start = time.process_time()
  for id in ids:
    (data,), _ = source.read([id])
    image = PIL.Image.open(io.BytesIO(data)).convert('RGB')
    for _ in range(VIEWS.count):
      make_view(image, rng)
  return PILLOW_IMAGES / (time.process_time() - start)


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


def pillow_crop(image, rng):
  """RandomResizedCrop and flip."""
  width, height = image.size
  for _ in range(10):
    area = width * height * rng.uniform(*VIEWS.crop)
    aspect = np.exp(rng.uniform(*np.log(VIEWS.aspect)))
    w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
    if w <= width and h <= height:
      left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
      break
  else:
    w = h = min(width, height)
    left, top = (width - w) // 2, (height - h) // 2
  view = image.crop((left, top, left + w, top + h)).resize((VIEWS.size,) * 2, BILINEAR)
  return view.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < VIEWS.flip else view


def pillow_view(image, rng):
  """The whole recipe: float32 [3, size, size]."""
  view = pillow_crop(image, rng)
  if rng.random() < VIEWS.jitter:
    changes = [(PIL.ImageEnhance.Brightness, VIEWS.brightness),
               (PIL.ImageEnhance.Contrast, VIEWS.contrast),
               (PIL.ImageEnhance.Color, VIEWS.saturation), (None, VIEWS.hue)]
    for change, strength in (changes[i] for i in rng.permutation(4)):
      if change is None:
        view = shift_hue(view, rng.uniform(-strength, strength))
      else:
        view = change(view).enhance(rng.uniform(max(0, 1 - strength), 1 + strength))
  if rng.random() < VIEWS.grayscale:
    view = view.convert('L').convert('RGB')
  if rng.random() < VIEWS.blur:
    view = view.filter(PIL.ImageFilter.GaussianBlur(rng.uniform(*VIEWS.blur_sigma)))
  pixels = np.asarray(view).transpose(2, 0, 1).astype(np.float32) / 255
  mean, std = (np.array(x, np.float32)[:, None, None] for x in (VIEWS.mean, VIEWS.std))
  return (pixels - mean) / std


def shift_hue(image, share):
  hue, saturation, value = image.convert('HSV').split()
  hue = PIL.Image.fromarray(np.asarray(hue) + np.uint8(round(share * 255) % 256))
  return PIL.Image.merge('HSV', (hue, saturation, value)).convert('RGB')


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


def write(figures: dict):
  """Prints the table and writes it to benchmarks/results."""
  import tensorflow as tf
  rates = figures['rates']
  whole = rates['Pillow, whole recipe']
  rows = [f'| {name} | {rate:,.0f} | {rate / whole:.1f} |' for name, rate in rates.items()]
  table = '\n'.join([
      '# Input: images a second of one core', '',
      f'Two 224-pixel views an image, {figures["number"]} JPEGs ({figures["images"]}), median of '
      f'{ROUNDS} rounds. `python -m benchmarks.input`', '',
      f'{hardware()} TensorFlow {tf.__version__}, Pillow {PIL.__version__}.', '',
      '| part | images/s | against the whole recipe in Pillow |', '| --- | ---: | ---: |',
      *rows, ''])
  print(table)
  RESULTS.parent.mkdir(exist_ok=True)
  RESULTS.write_text(table)


if __name__ == '__main__':
  main()
