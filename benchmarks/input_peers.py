"""Input pipelines that `benchmarks.input` compares with: Pillow, torchvision's v2 and DALI's CPU operators.

A pipeline is a function that prepares some images and says how many a second of the processor. All read the
same files, decode each image once, and cut the views of the setting out of it. `crop` makes what our host
makes, uint8 views; `whole recipe` also flips, changes colours, blurs and normalises.
"""
import importlib.util
import io
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageFilter

from conic_jax.views import Views

BILINEAR = PIL.Image.Resampling.BILINEAR
BATCH, BATCHES = 64, 6
Rate = Callable[[], float]


def versions() -> tuple[list[str], list[str]]:
  """The pipelines that are installed, with their versions, and those that are not."""
  found, absent = [f'Pillow {PIL.__version__}'], []
  for name in ('torchvision', 'nvidia.dali'):
    if name in sys.modules:
      found.append(f'{name} {sys.modules[name].__version__}')
    else:
      absent.append(name)
  return found, absent


def pillow(source: Any, views: Views) -> dict[str, Rate]:
  """torchvision's first recipe, with Pillow."""
  rng = np.random.default_rng(0)
  crop = lambda image: [pillow_crop(image, views, rng) for _ in range(views.count)]
  whole = lambda image: [pillow_view(image, views, rng) for _ in range(views.count)]
  return {'Pillow, crop': lambda: per_image(source, rng, open_rgb, crop),
          'Pillow, whole recipe': lambda: per_image(source, rng, open_rgb, whole)}


def per_image(source: Any, rng: np.random.Generator, decode: Callable, make_views: Callable) -> float:
  """Images a second of a loader that takes one at a time."""
  ids = rng.integers(source.num_images, size=BATCH)
  start = time.process_time()
  for id in ids:
    (data,), _ = source.read([id])
    make_views(decode(data))
  return len(ids) / (time.process_time() - start)


def open_rgb(data: bytes) -> PIL.Image.Image:
  """Decodes with Pillow."""
  return PIL.Image.open(io.BytesIO(data)).convert('RGB')


def pillow_crop(image: PIL.Image.Image, views: Views, rng: np.random.Generator) -> PIL.Image.Image:
  """RandomResizedCrop."""
  width, height = image.size
  for _ in range(10):
    area = width * height * rng.uniform(*views.crop)
    aspect = np.exp(rng.uniform(*np.log(views.aspect)))
    w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
    if w <= width and h <= height:
      left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
      break
  else:
    w = h = min(width, height)
    left, top = (width - w) // 2, (height - h) // 2
  return image.crop((left, top, left + w, top + h)).resize((views.size, views.size), BILINEAR)


def pillow_view(image: PIL.Image.Image, views: Views, rng: np.random.Generator) -> np.ndarray:
  """The whole recipe: float32 [3, size, size]."""
  view = pillow_crop(image, views, rng)
  if rng.random() < views.flip:
    view = view.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
  if rng.random() < views.jitter:
    changes = [(PIL.ImageEnhance.Brightness, views.brightness),
               (PIL.ImageEnhance.Contrast, views.contrast),
               (PIL.ImageEnhance.Color, views.saturation), (None, views.hue)]
    for change, strength in (changes[i] for i in rng.permutation(4)):
      if change is None:
        view = shift_hue(view, rng.uniform(-strength, strength))
      else:
        view = change(view).enhance(rng.uniform(max(0, 1 - strength), 1 + strength))
  if rng.random() < views.grayscale:
    view = view.convert('L').convert('RGB')
  if rng.random() < views.blur:
    view = view.filter(PIL.ImageFilter.GaussianBlur(rng.uniform(*views.blur_sigma)))
  pixels = np.asarray(view).transpose(2, 0, 1).astype(np.float32) / 255
  mean, std = (np.array(x, np.float32)[:, None, None] for x in (views.mean, views.std))
  return (pixels - mean) / std


def shift_hue(image: PIL.Image.Image, share: float) -> PIL.Image.Image:
  """Turns the hues by a share of the circle."""
  hue, saturation, value = image.convert('HSV').split()
  hue = PIL.Image.fromarray(np.asarray(hue) + np.uint8(round(share * 255) % 256))
  return PIL.Image.merge('HSV', (hue, saturation, value)).convert('RGB')


def torchvision(source: Any, views: Views) -> dict[str, Rate]:
  """torchvision's v2 transforms of uint8 tensors, one thread; nothing where it is not installed."""
  if not (importlib.util.find_spec('torch') and importlib.util.find_spec('torchvision')):
    return {}
  import torch  # pyright: ignore[reportMissingImports]

  from benchmarks.cpu_step import define_missing_operators
  define_missing_operators()
  from torchvision.transforms import v2  # pyright: ignore[reportMissingImports]
  torch.set_num_threads(1)
  torch.set_flush_denormal(True)  # The tails of a narrow blur take ten times as long otherwise.
  rng = np.random.default_rng(0)
  crop, antialiased = (v2.RandomResizedCrop(views.size, views.crop, views.aspect, antialias=antialias)
                       for antialias in (False, True))
  blur = v2.GaussianBlur(views.size // 10 | 1, views.blur_sigma)
  jitter = v2.ColorJitter(views.brightness, views.contrast, views.saturation, views.hue)
  # Colours and blur take less time on floats, plane by plane.
  whole = v2.Compose([
    antialiased, v2.Lambda(torch.Tensor.contiguous), v2.ToDtype(torch.float32, scale=True),
    v2.RandomHorizontalFlip(views.flip), v2.RandomApply([jitter], views.jitter),
    v2.RandomGrayscale(views.grayscale), v2.RandomApply([blur], views.blur),
    v2.Normalize(views.mean, views.std)])
  decode = torch_decoder()

  def rate(transform):
    many = lambda image: [transform(image) for _ in range(views.count)]
    return lambda: per_image(source, rng, decode, many)
  return {'torchvision v2, crop': rate(crop), 'torchvision v2, crop, antialiased': rate(antialiased),
          'torchvision v2, whole recipe': rate(whole)}


def torch_decoder() -> Callable[[bytes], Any]:
  """From bytes to uint8 [3, H, W]: with torchvision's own decoder where its library loads, or with Pillow."""
  import torch  # pyright: ignore[reportMissingImports]
  from torchvision import io as images  # pyright: ignore[reportMissingImports]
  from torchvision.transforms.v2 import functional  # pyright: ignore[reportMissingImports]
  if hasattr(torch.ops.image, 'decode_jpeg'):
    return lambda data: images.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8),
                                           mode=images.ImageReadMode.RGB)
  return lambda data: functional.pil_to_tensor(open_rgb(data))


def dali(files: list[str], views: Views) -> dict[str, Rate]:
  """DALI's CPU operators, one thread, as they come and without antialiasing; nothing where it is absent."""
  if not importlib.util.find_spec('nvidia') or not importlib.util.find_spec('nvidia.dali'):
    return {}
  from nvidia.dali import fn, pipeline_def  # pyright: ignore[reportMissingImports]

  @pipeline_def(batch_size=BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1, seed=1)
  def pipeline(antialias):
    data, _ = fn.readers.file(files=files, random_shuffle=True)
    image = fn.decoders.image(data, device='cpu')
    return tuple(fn.random_resized_crop(
      image, size=(views.size,) * 2, random_area=views.crop, random_aspect_ratio=views.aspect,
      antialias=antialias) for _ in range(views.count))

  def rate(antialias):
    made = pipeline(antialias)
    made.build()
    made.run()

    def once():
      start = time.process_time()
      for _ in range(BATCHES):
        made.run()
      return BATCHES * BATCH / (time.process_time() - start)
    return once
  return {'DALI, crop': rate(False), 'DALI, crop, antialiased': rate(True)}
